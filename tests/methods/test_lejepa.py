"""LeJEPA's loss against lightly's, and against integrals by hand."""

import math

import pytest
import torch
from lightly.loss import LeJEPALoss

from hf_essl.methods import SSLModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    arguments = {"projector_hidden": 16, "projector_dim": 8, "directions": 256}
    return SSLModel.from_timm("test_resnet", "lejepa", method_args=arguments)


def lightlys(model, z1, z2, monkeypatch):
    """lightly's loss of two global views, with the model's directions; it wants a local view, so one is global."""
    published = LeJEPALoss(lambda_param=model.sigreg_weight)
    monkeypatch.setattr(published.sigreg, "_generate_unit_vectors", lambda *args: model.vectors)
    sigreg = published.sigreg(torch.stack([z1, z2]))
    center = (z1 + z2) / 2
    prediction = torch.stack([(z1 - center), (z2 - center)]).square().mean()
    return published.lambda_param * sigreg + (1 - published.lambda_param) * prediction


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_loss_and_gradients_are_lightlys(model, scale, monkeypatch):
    model.before_step(0.25, 3.0)
    rows = scale * torch.randn(2, 32, 8)
    ours, theirs = ([x.clone().requires_grad_() for x in rows] for _ in range(2))
    loss = model.loss(tuple(ours), tuple(ours)).mean()
    expected = lightlys(model, *theirs, monkeypatch)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_the_prediction_loss_is_lightlys(model, monkeypatch):
    """All of lightly's loss but SIGReg, which is switched off; its local views are the second view here."""
    from lightly.loss.lejepa_loss import lejepa_invariance_loss

    model.sigreg_weight = 0.0
    views = torch.randn(2, 16, 8)
    expected = lejepa_invariance_loss(all_proj=views, global_proj=views)
    torch.testing.assert_close(model.loss(tuple(views), tuple(views)).mean(), expected)


def test_sigreg_of_one_point_by_hand(model):
    """All embeddings are zero: the characteristic function is 1, and the Gaussian's is exp(-t^2 / 2)."""
    steps = torch.linspace(0, 3, 17, dtype=torch.float64)
    values = [(1 - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2) for t in steps.tolist()]
    integral = 2 * (3 / 16) * (sum(values) - (values[0] + values[-1]) / 2)
    assert model.sigreg(torch.zeros(10, 8)).item() == pytest.approx(10 * integral, rel=1e-5)


def test_sigreg_prefers_a_gaussian(model):
    gaussian, line = torch.randn(4096, 8), torch.randn(4096, 1).expand(-1, 8)
    narrow, shifted = 0.3 * torch.randn(4096, 8), torch.randn(4096, 8) + 1
    assert model.sigreg(gaussian) < min(model.sigreg(other) for other in (line, narrow, shifted)) / 5


def test_directions_are_unit_vectors_that_follow_from_the_step(model):
    model.before_step(0.5, 0.0)
    first = model.vectors.clone()
    torch.testing.assert_close(first.norm(dim=0), torch.ones(256))
    random = torch.get_rng_state()
    model.before_step(0.500001, 0.0)
    assert not torch.equal(model.vectors, first)
    model.before_step(0.5, 0.0)
    assert torch.equal(model.vectors, first) and torch.equal(torch.get_rng_state(), random)


def test_a_weight_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"sigreg_weight is 2; it should be less than or equal to 1"):
        SSLModel.from_timm("test_resnet", "lejepa", method_args={"sigreg_weight": 2})
