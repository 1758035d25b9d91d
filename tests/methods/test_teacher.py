"""The momentum teacher against lightly's schedule and numbers by hand."""

import pytest
import torch
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from hf_essl.methods.teacher import MomentumTeacher, cosine_momentum


@pytest.mark.parametrize("base", [0.99, 0.996])
def test_tau_is_lightlys_schedule(base):
    expected = [cosine_schedule(step, 101, base, 1.0) for step in range(101)]  # from 0 to max_steps - 1
    assert [cosine_momentum(base, step / 100) for step in range(101)] == pytest.approx(expected, abs=1e-12)


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
