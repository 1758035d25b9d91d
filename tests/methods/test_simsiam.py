"""SimSiam against its equations in plain numpy and its published shapes."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_essl.methods import METHODS, SSLModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SSLModel.from_timm("test_resnet", "simsiam")


def views(seed):
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_loss_of_each_image_is_the_published_equation(model):
    rng = np.random.default_rng(0)
    p1, p2, z1, z2 = rng.normal(size=(4, 5, 7))

    def cosine(a, b):
        return np.array([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)])

    expected = -cosine(p1, z2) / 2 - cosine(p2, z1) / 2
    p1, p2, z1, z2 = (torch.from_numpy(x) for x in (p1, p2, z1, z2))
    np.testing.assert_allclose(model.loss((p1, p2), (z1, z2)).numpy(), expected, atol=1e-6)


def test_the_target_takes_no_gradient(model):
    first, second = views(1), views(2)
    model.zero_grad()
    model(first, second)["loss"].mean().backward()
    got = model.projector[0].weight.grad.clone()
    model.zero_grad()
    z1, z2 = (model.projector(model.backbone(v)) for v in (first, second))
    p1, p2 = model.predictor(z1), model.predictor(z2)
    cos = nn.CosineSimilarity(dim=1)
    (-(cos(p1, z2.detach()) + cos(p2, z1.detach())).mean() / 2).backward()
    torch.testing.assert_close(got, model.projector[0].weight.grad)


def test_published_heads_over_resnet50():
    model = SSLModel.from_timm("resnet50", "simsiam")
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(2048, 2048)] * 3 + [(512, 2048), (2048, 512)]
    norms = [m for head in (model.projector, model.predictor) for m in head if isinstance(m, nn.BatchNorm1d)]
    assert [m.affine for m in norms] == [True, True, False, True]
    assert model.projector[-1] is norms[2] and isinstance(model.predictor[-1], nn.Linear)
    parameters = sum(p.numel() for p in [*model.projector.parameters(), *model.predictor.parameters()])
    assert parameters == 3 * 2048**2 + 2 * 2 * 2048 + 2 * 2048 * 512 + 2 * 512 + 2048


def test_every_trainable_parameter_changes_in_two_steps(model):
    """Two, since timm starts the last BatchNorm of a residual branch at zero."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(views(1), views(2))["loss"].mean().backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_the_encoder_sees_one_view_a_batch(model):
    """Batch statistics of a view do not depend on the other view."""
    seen = []
    hook = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    model(views(1), views(2))
    hook.remove()
    assert seen == [6, 6]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("size", [64, 96])
def test_any_backbone_at_any_resolution(backbone, size):
    model = SSLModel.from_timm(backbone, method_args={"projector_dim": 16, "predictor_hidden": 8})
    output = model(torch.randn(3, 3, size, size), torch.randn(3, 3, size, size))
    assert output["loss"].shape == (3,) and output["embedding"].shape == (3, 16)
    assert (output["loss"].abs() <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("backbone", "method", "arguments", "message"),
    [
        ("resnet5O", "simsiam", {}, r"backbone is 'resnet5O', no timm model; did you mean .*resnet50"),
        ("test_resnet", "simsian", {}, r"method is 'simsian'; choose one of simsiam"),
        (
            "test_resnet",
            "simsiam",
            {"projector_dims": 8},
            r"method_args holds 'projector_dims', unknown to simsiam; it takes",
        ),
    ],
)
def test_unknown_names_are_told_in_one_line(backbone, method, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        SSLModel.from_timm(backbone, method, method_args=arguments)
    assert "\n" not in str(error.value)


def test_the_table_holds_what_it_says():
    assert all(issubclass(method, SSLModel) for method in METHODS.values())
