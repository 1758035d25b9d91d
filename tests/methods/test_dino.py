"""DINO: its loss, center, temperature and frozen last layer, against lightly's and by hand."""

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from torch import nn
from torch.distributions import Categorical, kl_divergence

from hf_essl.methods import SSLModel


def build(**arguments):
    torch.manual_seed(0)
    settings = {"hidden": 24, "bottleneck": 8, "output_dim": 12, **arguments}
    return SSLModel.from_timm("test_resnet", "dino", method_args=settings)


def test_loss_is_the_cross_entropy_to_centered_and_sharpened_teacher_outputs():
    model = build()
    model.center.normal_()
    s1, s2, t1, t2 = torch.rand(4, 5, 12) * 2 - 1  # cosines

    def entropy(s, t):
        t = (t - model.center[0]) / 0.04
        s = s / 0.1
        return -(torch.exp(t - torch.logsumexp(t, 0)) * (s - torch.logsumexp(s, 0))).sum()

    expected = torch.stack([(entropy(s1[n], t2[n]) + entropy(s2[n], t1[n])) / 2 for n in range(5)])
    torch.testing.assert_close(model.loss((s1, s2), (t1, t2)), expected, atol=1e-5, rtol=1e-6)


def test_components_are_the_teachers_entropy_and_the_divergence_from_it():
    model = build()
    model.center.normal_()
    s1, s2, t1, t2 = torch.rand(4, 5, 12) * 2 - 1
    parts = model.loss_components((s1, s2), (t1, t2), model.loss((s1, s2), (t1, t2)))
    teachers = [Categorical(logits=(t - model.center) / 0.04) for t in (t1, t2)]
    students = [Categorical(logits=s / 0.1) for s in (s2, s1)]
    entropy = torch.stack([teacher.entropy() for teacher in teachers]).mean()
    kl = torch.stack([kl_divergence(t, s) for t, s in zip(teachers, students, strict=True)]).mean()
    torch.testing.assert_close(parts, {"teacher_entropy": entropy, "kl": kl}, atol=1e-4, rtol=1e-5)


def test_loss_center_and_temperature_are_lightlys_over_40_epochs():
    model = build(teacher_temperature=0.07)
    published = DINOLoss(12, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=30)
    generator = torch.Generator().manual_seed(2)
    for epoch in range(40):
        s1, s2, t1, t2 = torch.rand(4, 8, 12, generator=generator) * 2 - 1
        model.before_step(epoch / 40, epoch + 0.5)
        ours = model.loss((s1, s2), (t1, t2)).mean()
        theirs = published([t1, t2], [s1, s2], epoch=epoch)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        model._pending_means.append(torch.cat([t1, t2]).mean(dim=0, keepdim=True))
        model.after_step()
        torch.testing.assert_close(model.center, published.center[0], atol=1e-7, rtol=1e-6)


def test_after_step_moves_the_center_by_a_tenth_of_the_teachers_mean(views):
    model = build()
    outputs = torch.cat([model.teacher(view) for view in views])
    model(*views)
    assert torch.equal(model.center, torch.zeros(1, 12))
    model.after_step()
    torch.testing.assert_close(model.center, 0.1 * outputs.mean(0, keepdim=True), atol=1e-5, rtol=1e-4)


def test_the_last_layer_is_frozen_in_the_first_epoch(views):
    model = build()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=0.1)
    start, first = model.projector[-1].weight.clone(), model.projector[0].weight.clone()
    for epoch in (0.0, 0.5, 1.0):
        model.before_step(epoch / 2, epoch)
        optimizer.zero_grad()
        model(*views)["loss"].mean().backward()
        model.after_backward()
        optimizer.step()
        model.after_step()
        assert torch.equal(model.projector[-1].weight, start) == (epoch < 1)
        assert not torch.equal(model.projector[0].weight, first)


def test_the_head_is_lightlys_over_resnet50():
    model = SSLModel.from_timm("resnet50", "dino", method_args={"output_dim": 1024})
    published = DINOProjectionHead(2048, 2048, 256, 1024)
    ours = [m for m in model.projector if isinstance(m, nn.Linear)]
    theirs = [m for m in published.layers if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in ours] == [tuple(m.weight.shape) for m in theirs]
    for own, other in zip(ours, theirs, strict=True):
        other.load_state_dict(own.state_dict())
    published.last_layer.weight_v.data.copy_(3 * model.projector[-1].weight.data)  # its norm does not matter
    x = torch.randn(4, 2048)
    torch.testing.assert_close(model.projector(x), published(x), atol=1e-6, rtol=1e-5)


def test_published_defaults():
    model = build()
    assert (model.student_temperature, model.center_momentum, model.base_momentum) == (0.1, 0.9, 0.996)
    assert (model.warmup_temperature, model.final_temperature, model.warmup_epochs) == (0.04, 0.07, 30)
    assert model.frozen_epochs == 1
