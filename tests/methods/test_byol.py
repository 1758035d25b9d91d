"""BYOL against its equations, lightly's loss and its published shapes."""

import copy

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import nn
from torch.nn import functional as F

from hf_essl.methods import METHODS, SSLModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SSLModel.from_timm("test_resnet", "byol", method_args=METHODS["byol"].small_args)


def test_loss_is_the_squared_distance_of_unit_vectors_in_both_directions(model):
    q1, q2, k1, k2 = torch.randn(4, 5, 16)
    unit = [F.normalize(x, dim=1) for x in (q1, q2, k1, k2)]
    expected = ((unit[0] - unit[3]) ** 2).sum(1) + ((unit[1] - unit[2]) ** 2).sum(1)
    torch.testing.assert_close(model.loss((q1, q2), (k1, k2)), expected, atol=2e-6, rtol=1e-6)
    cosine = NegativeCosineSimilarity()
    published = 4 + 2 * cosine(q1, k2) + 2 * cosine(q2, k1)
    torch.testing.assert_close(model.loss((q1, q2), (k1, k2)).mean(), published, atol=1e-6, rtol=0)


def test_the_teacher_equals_the_student_at_step_0_and_has_no_predictor(model, views):
    student = nn.ModuleDict({"backbone": model.backbone, "head": model.projector})
    ours, theirs = (dict(network.named_parameters()) for network in (model.teacher, student))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    twin = copy.deepcopy(nn.Sequential(model.backbone, model.projector))
    assert torch.equal(model.teacher(views[0]), twin(views[0]))


def test_only_after_step_moves_the_teacher(model, views):
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.before_step(0.5, 1.0)  # tau = 0.995
    model(*views)["loss"].mean().backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.teacher.named_parameters())
    model.after_step()
    expected = 0.995 * before["head.0.weight"] + 0.005 * model.projector[0].weight
    torch.testing.assert_close(model.teacher.head[0].weight, expected, atol=1e-6, rtol=1e-5)


def test_the_teacher_gets_no_gradient_and_normalizes_by_the_batch(model, views):
    model.train()(*views)["loss"].mean().backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.predictor.parameters())
    assert model.teacher.training and int(model.teacher.head[1].num_batches_tracked) == 2


def test_published_heads_over_resnet50():
    model = SSLModel.from_timm("resnet50", "byol")
    shapes = [tuple(m.weight.shape) for m in [*model.projector, *model.predictor] if isinstance(m, nn.Linear)]
    assert shapes == [(4096, 2048), (256, 4096), (4096, 256), (256, 4096)]
    assert model.base_momentum == 0.99
