"""SimSiam against its equations in plain numpy and its published shapes."""

import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import nn

from hf_essl.methods import SSLModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SSLModel.from_timm("test_resnet", "simsiam")


def test_loss_of_each_image_is_the_published_equation(model):
    rng = np.random.default_rng(0)
    p1, p2, z1, z2 = rng.normal(size=(4, 5, 7))

    def cosine(a, b):
        return np.array([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)])

    expected = -cosine(p1, z2) / 2 - cosine(p2, z1) / 2
    p1, p2, z1, z2 = (torch.from_numpy(x) for x in (p1, p2, z1, z2))
    np.testing.assert_allclose(model.loss((p1, p2), (z1, z2)).numpy(), expected, atol=1e-6)


def test_loss_is_lightlys(model):
    p1, p2, z1, z2 = torch.randn(4, 5, 7)
    cosine = NegativeCosineSimilarity()
    published = (cosine(p1, z2) + cosine(p2, z1)) / 2
    torch.testing.assert_close(model.loss((p1, p2), (z1, z2)).mean(), published, atol=1e-6, rtol=0)


def test_the_target_gets_no_gradient(model, views):
    model.zero_grad()
    model(*views)["loss"].mean().backward()
    got = model.projector[0].weight.grad.clone()
    model.zero_grad()
    z1, z2 = (model.projector(model.backbone(v)) for v in views)
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
