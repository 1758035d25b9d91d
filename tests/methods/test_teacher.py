"""Momentum teachers against hand-written numbers."""

import pytest
import torch
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from hf_essl.methods.teacher import MomentumTeacher, cosine_momentum


@pytest.mark.parametrize(
    ("progress", "tau"), [(0.0, 0.99), (1 / 3, 0.9925), (0.5, 0.995), (2 / 3, 0.9975), (1.0, 1.0)]
)
def test_tau_of_byol_by_hand(progress, tau):
    assert cosine_momentum(0.99, progress) == pytest.approx(tau, abs=1e-12)


def test_tau_of_dino_is_the_published_schedule():
    """lightly's runs from 0 to max_steps - 1."""
    expected = [cosine_schedule(step, 101, 0.996, 1.0) for step in range(101)]
    assert [cosine_momentum(0.996, step / 100) for step in range(101)] == pytest.approx(expected, abs=1e-12)


def test_the_teacher_moves_towards_the_student():
    student, head = nn.Linear(1, 1, bias=False), nn.Identity()
    teacher = MomentumTeacher(student, head)
    assert torch.equal(teacher.backbone.weight, student.weight) and not teacher.backbone.weight.requires_grad
    with torch.no_grad():
        teacher.backbone.weight.fill_(1.0)
        student.weight.fill_(3.0)
    teacher.ema_update(student, head, 0.9)
    assert teacher.backbone.weight.item() == pytest.approx(1.2)  # 0.9 * 1 + 0.1 * 3
    assert student.weight.item() == 3.0


def test_batchnorm_statistics_are_not_averaged():
    student, head = nn.BatchNorm1d(2), nn.Identity()
    teacher = MomentumTeacher(student, head)
    student(torch.randn(8, 2) + 5)
    teacher.ema_update(student, head, 0.5)
    assert torch.equal(teacher.backbone.running_mean, torch.zeros(2))
