"""SimCLR's NT-Xent against lightly's and against a loop over all pairs."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn

from hf_essl.methods import SSLModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SSLModel.from_timm("test_resnet", "simclr", method_args={"projector_dim": 8, "temperature": 0.5})


def test_loss_of_each_image_is_the_published_equation(model):
    """Eq. 1 of SimCLR, -log exp(s_ij / t) / sum_{k != i} exp(s_ik / t), by hand, the mean of both directions."""
    z1, z2 = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(3))
    rows = [*z1.double(), *z2.double()]

    def similarity(i, k):
        return float(rows[i] @ rows[k] / (rows[i].norm() * rows[k].norm()))

    def one(i, j):
        others = sum(math.exp(similarity(i, k) / 0.5) for k in range(8) if k != i)
        return -math.log(math.exp(similarity(i, j) / 0.5) / others)

    expected = torch.tensor([(one(n, n + 4) + one(n + 4, n)) / 2 for n in range(4)])
    torch.testing.assert_close(model.loss((z1, z2), (z1, z2)), expected, atol=2e-6, rtol=0)


def test_components_are_alignment_and_log_sum_exp_by_hand(model):
    """Two images: z1 is orthogonal to its partner, z2 equals it; the temperature is 0.5."""
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    parts = model.loss_components((first, second), (first, second), model.loss((first, second), (first, second)))
    orthogonal = math.log(2 + 1), math.log(1 + 2 * math.exp(2))  # z1 against the three others, and its partner
    equal = math.log(1 + 2 * math.exp(2))
    assert parts["alignment"].item() == pytest.approx(-(0 + 1) / 2 / 0.5, abs=1e-6)
    assert parts["uniformity"].item() == pytest.approx((orthogonal[0] + orthogonal[1] + 2 * equal) / 4, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_is_lightlys(model, temperature, monkeypatch):
    monkeypatch.setattr(model, "temperature", temperature)
    z1, z2 = torch.randn(2, 32, 64)
    ours = model.loss((z1, z2), (z1, z2)).mean()
    torch.testing.assert_close(ours, NTXentLoss(temperature)(z1, z2), atol=1e-6, rtol=0)


def test_gradients_are_lightlys(model):
    """Both views get a gradient, as anchors and as candidates."""
    rows = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(5))
    ours, theirs = ([x.clone().requires_grad_() for x in rows] for _ in range(2))
    model.loss(tuple(ours), tuple(ours)).mean().backward()
    NTXentLoss(0.5)(*theirs).backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-6, rtol=0)


def test_published_heads_over_resnet50():
    model = SSLModel.from_timm("resnet50", "simclr")
    assert [tuple(m.weight.shape) for m in model.projector if isinstance(m, nn.Linear)] == [(2048, 2048), (128, 2048)]
    assert isinstance(model.projector[-1], nn.BatchNorm1d) and model.temperature == 0.1
