"""The momentum teacher against lightly's schedule and numbers by hand."""

import copy

import pytest
import torch
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from hf_essl.methods import METHODS, SSLModel
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


DROPOUTS = [  # every way in which timm's networks draw random numbers in training
    ("test_resnet", {"drop_path_rate": 0.5, "zero_init_last": False}),
    ("test_resnet", {"drop_rate": 0.5}),  # F.dropout on the features
    ("test_resnet", {"drop_block_rate": 0.5, "zero_init_last": False}),
    ("test_vit", {"drop_path_rate": 0.5}),
    ("test_vit", {"attn_drop_rate": 0.5}),  # an argument of the attention, not a module
    ("test_vit", {"proj_drop_rate": 0.5, "pos_drop_rate": 0.5}),
    ("test_vit", {"patch_drop_rate": 0.5}),
]


@pytest.mark.parametrize(("backbone", "backbone_args"), DROPOUTS)
def test_the_teacher_is_deterministic_and_the_student_is_not(backbone, backbone_args):
    torch.manual_seed(0)
    model = SSLModel.from_timm(
        backbone, "byol", backbone_args=backbone_args, method_args=METHODS["byol"].small_args, resolutions=[64]
    )
    images = torch.randn(8, 3, 64, 64)
    model.train().eval()
    model.train()  # as Trainer does in each step
    random = torch.get_rng_state()
    first, second = model.teacher(images), model.teacher(images)
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), random)
    assert not torch.equal(model.embed(images)[1], model.embed(images)[1])


@pytest.mark.parametrize("method", ["byol", "mocov2", "dino"])
def test_batchnorm_of_the_teacher_uses_the_batch(method):
    """As published; the running statistics differ from those of a batch that is shifted."""
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args).train()
    teacher, images = model.teacher, 3 + torch.randn(8, 3, 64, 64)
    before = teacher.backbone.bn1.running_mean.clone()
    in_training = teacher(images)
    assert not torch.equal(teacher.backbone.bn1.running_mean, before)
    twin = copy.deepcopy(teacher).train()
    nn.Module.train(twin, True)  # every module in train mode, without this class's own rule
    for module in twin.modules():
        module.training = True
    torch.testing.assert_close(twin(images), in_training)
    assert not torch.allclose(teacher.eval()(images), in_training, atol=1e-3)
    assert not any(module.training for module in teacher.modules())


def test_cached_position_biases_follow_the_student():
    """LeViT caches them in evaluation mode; a teacher that kept the cache would never move."""
    torch.manual_seed(0)
    model = SSLModel.from_timm("levit_128s", "byol", method_args=METHODS["byol"].small_args, resolutions=[64]).train()
    images = torch.randn(2, 3, 64, 64)
    before = model.teacher(images)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name.endswith("attention_biases"):
                parameter.add_(torch.randn_like(parameter))
    model.teacher.ema_update(model.backbone, model.projector, 0.0)
    assert not torch.allclose(model.teacher(images), before, atol=1e-4)
