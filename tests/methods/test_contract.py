"""What every method must do: any backbone and resolution, a float32 loss that changes nothing, plain errors."""

import copy

import pytest
import torch

from hf_essl.config import ViewArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.selection import HardAugment
from hf_essl.views import Views


def build(method, backbone="test_resnet", **arguments):
    torch.manual_seed(0)
    return SSLModel.from_timm(backbone, method, method_args={**METHODS[method].small_args, **arguments}).train()


@pytest.mark.parametrize("method", METHODS)
def test_each_entry_declares_title_description_and_citation(method):
    declared = METHODS[method]
    assert issubclass(declared, SSLModel) and declared.title
    assert declared.description and "\n" not in declared.description
    assert declared.citation.startswith("@") and declared.citation.count("{") == declared.citation.count("}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
def test_any_backbone_at_every_resolution_of_a_schedule(method, backbone):
    model = build(method, backbone)
    for size in (64, 96):
        model.before_step(0.5, 1.0)
        output = model(torch.randn(4, 3, size, size), torch.randn(4, 3, size, size))
        assert output["loss"].shape == (4,) and output["loss"].isfinite().all()
        assert output["embedding"].shape[0] == 4 and not output["embedding"].requires_grad
        output["loss"].mean().backward()
        model.after_backward()
        model.after_step()


@pytest.mark.parametrize("method", METHODS)
def test_every_trainable_parameter_changes_in_two_steps(method, views):
    """Two steps, because timm initializes the last BatchNorm of a residual branch to zero."""
    model = build(method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(2):
        model.before_step(step / 2, 1.0 + step)
        model(*views)["loss"].mean().backward()
        model.after_backward()
        optimizer.step()
        model.after_step()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("method", METHODS)
def test_the_student_sees_one_view_per_batch(method, views):
    model, seen = build(method), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    model(*views)
    assert seen == [6, 6]


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_pass_changes_only_running_statistics(method, views):
    model = build(method)
    before = copy.deepcopy(model.state_dict())
    model(*views)["loss"].mean().backward()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in model.state_dict().items():
        assert name.endswith(statistics) or torch.equal(value, before[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_loss_components_sum_to_the_loss_and_have_no_gradient(method, views):
    model = build(method)
    model.before_step(0.5, 1.0)
    output = model(*views)
    parts = output["loss_components"]
    assert len(parts) == 2 and all(part.shape == () and not part.requires_grad for part in parts.values())
    torch.testing.assert_close(sum(parts.values()), output["loss"].mean().detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("score", ["cosine", "projection_cosine", "loss"])
def test_hard_augment_leaves_no_trace(method, score):
    model = build(method)
    args = ViewArguments(resolution=64, num_views=4, selection="hard", selection_resolution=32, selection_score=score)
    images = torch.randint(0, 256, (4, 3, 80, 80), dtype=torch.uint8)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    chosen = HardAugment(Views(args))(model, images)
    assert chosen.pair.shape == (4,) and chosen.scalars()["selection_gap"] >= 0 and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert not getattr(model, "_pending_keys", []) and not getattr(model, "_pending_means", [])
    with torch.no_grad():
        model.embed(torch.randn(4, 3, 32, 32))  # running statistics are updated again afterwards
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_float32_under_autocast(method, views):
    """The loss of given embeddings does not depend on autocast, while the network runs in half precision."""
    model = build(method)
    small = METHODS[method].small_args
    q1, q2, k1, k2 = torch.randn(4, 6, small.get("output_dim", small.get("projector_dim", 64)))
    expected = model.loss((q1, q2), (k1, k2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.loss((q1, q2), (k1, k2)), expected)
        assert model.backbone(views[0]).dtype == torch.bfloat16
        assert model(*views)["loss"].dtype == torch.float32


NO_LOSS_AT_COLLAPSE = ("lejepa", "distill")


@pytest.mark.parametrize("method", NO_LOSS_AT_COLLAPSE)
def test_a_loss_at_collapse_that_depends_on_the_point_is_not_known(method):
    """SIGReg makes it a large one; a teacher's features may all lie near one point."""
    assert build(method).loss_at_collapse(images=6) is None


@pytest.mark.parametrize("method", [name for name in METHODS if name not in NO_LOSS_AT_COLLAPSE])
def test_loss_at_collapse_is_the_loss_of_one_embedding_for_all_images(method):
    model = build(method)
    point = torch.nn.functional.normalize(torch.randn(1, 32), dim=1).expand(6, -1)
    if method == "mocov2":
        point = point[:, :16]
        model.queue = torch.nn.functional.normalize(point[:1], dim=1).expand(40, -1).clone()
    if method == "dino":
        point = torch.zeros(6, 32)  # uniform outputs: the center has removed the collapsed teacher's
    loss = model.loss((point, point), (point, point)).mean().item()
    assert loss == pytest.approx(model.loss_at_collapse(images=6), abs=1e-5)


@pytest.mark.parametrize(
    ("backbone", "method", "arguments", "message"),
    [
        ("resnet5O", "simsiam", {}, r"backbone is 'resnet5O', which is not a timm model; did you mean .*resnet50"),
        ("test_resnet", "simsian", {}, r"method is 'simsian'; choose one of simsiam, byol, simclr, mocov2, dino, le"),
        ("test_resnet", "byol", {"tau": 0.9}, r"'tau', which byol does not accept; choose from .*momentum"),
    ],
)
def test_unknown_names_are_rejected_with_the_valid_ones(backbone, method, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        SSLModel.from_timm(backbone, method, method_args=arguments)
    assert "\n" not in str(error.value)
