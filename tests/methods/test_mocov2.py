"""MoCo v2+: its loss, its queue, and that no image meets the keys of its own step."""

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn
from torch.nn import functional as F

from hf_essl.methods import SSLModel


def build(**arguments):
    torch.manual_seed(0)
    settings = {"projector_dim": 8, "queue_length": 20, "splits": 2, **arguments}
    return SSLModel.from_timm("test_resnet", "mocov2", method_args=settings)


def test_loss_is_infonce_against_the_queue_in_both_directions():
    model = build(temperature=0.2)
    q1, q2, k1, k2 = (F.normalize(x, dim=1) for x in torch.randn(4, 3, 8))
    expected = []
    for n in range(3):
        total = 0.0
        for q, k in ((q1[n], k2[n]), (q2[n], k1[n])):
            positive = torch.exp(q @ k / 0.2)
            negatives = sum(torch.exp(q @ row / 0.2) for row in model.queue)
            total = total - torch.log(positive / (positive + negatives)) / 2
        expected.append(total)
    torch.testing.assert_close(model.loss((q1, q2), (k1, k2)), torch.stack(expected), atol=2e-6, rtol=0)


def test_loss_is_lightlys_with_its_memory_bank():
    model, published = build(temperature=0.2), NTXentLoss(0.2, memory_bank_size=(20, 8))
    published.memory_bank.bank.copy_(model.queue)
    q1, q2, k1, k2 = torch.randn(4, 3, 8)
    expected = (published(q1, k2) + published(q2, k1)) / 2  # without gradient the bank stays as it is
    torch.testing.assert_close(model.loss((q1, q2), (k1, k2)).mean(), expected, atol=1e-6, rtol=0)


def test_the_queue_moves_as_lightlys_memory_bank():
    model, bank = build(momentum=1.0), NTXentLoss(0.2, memory_bank_size=(20, 8)).memory_bank
    bank.bank.copy_(model.queue)
    for _ in range(7):  # wraps around; 4 divides 20 because lightly's bank drops keys that do not fit
        keys = F.normalize(torch.randn(4, 8), dim=1)
        model.enqueue(keys)
        bank(keys, update=True)
        assert torch.equal(model.queue, bank.bank) and int(model.pointer) == int(bank.bank_ptr) % 20


def test_the_queue_wraps_around():
    model = build(queue_length=5)
    rows = F.normalize(torch.arange(1.0, 57.0).reshape(7, 8), dim=1)
    model.enqueue(rows[:3])
    assert int(model.pointer) == 3 and torch.equal(model.queue[:3], rows[:3])
    model.enqueue(rows[3:7])
    assert int(model.pointer) == 2
    assert torch.equal(model.queue, rows[[5, 6, 2, 3, 4]])


def test_no_image_meets_the_keys_of_its_own_step(views):
    """The queue contains random rows, then keys of other images; never those of the current step."""
    model = build(queue_length=24)
    generator = torch.Generator().manual_seed(7)
    seen = []
    model._info_nce = lambda query, key, find=model._info_nce: (seen.append(model.queue.clone()), find(query, key))[1]
    for _ in range(5):
        fresh = [torch.randn(6, 3, 64, 64, generator=generator) for _ in range(2)]
        seen.clear()
        model.before_step(0.1, 0.0)
        model(*fresh)
        own = torch.cat([model._shuffled_keys(view) for view in fresh])
        assert len(seen) == 2
        for negatives in seen:
            distance = torch.cdist(F.normalize(own, dim=1), negatives)
            assert distance.min() > 1e-4
        model.after_step()
        distance = torch.cdist(F.normalize(own, dim=1), model.queue).min(dim=1).values
        assert distance.max() < 0.2  # after the step, the queue contains them


def test_accumulated_batches_enter_together(views):
    model = build(queue_length=24)
    before = model.queue.clone()
    model.before_step(0.0, 0.0)
    for half in (slice(0, 3), slice(3, 6)):
        model(views[0][half], views[1][half])["loss"].mean().backward()
        assert torch.equal(model.queue, before)
    model.after_step()
    assert int(model.pointer) == 12 and not torch.equal(model.queue[:12], before[:12])


def test_keys_of_a_skipped_step_are_dropped(views):
    model = build(queue_length=24)
    model.before_step(0.0, 0.0)
    model(*views)  # fp16 found infinite gradients: no after_step
    model.before_step(0.1, 0.0)
    model(*views)
    model.after_step()
    assert int(model.pointer) == 12


def test_split_batchnorm_groups_keep_the_images_in_order(views):
    model = build(splits=3).train()
    first, _ = views
    together = model._shuffled_keys(first)
    for n in range(6):
        own_group = model.teacher(torch.stack([first[n], first[(n + 3) % 6]]))[0]  # the groups are n::3
        torch.testing.assert_close(together[n], own_group, atol=1e-4, rtol=1e-4)


def test_a_queue_too_long_for_the_data_is_rejected():
    model = build(queue_length=20)
    model.check_data(images=29, batch=8)
    with pytest.raises(ValueError, match=r"queue_length is 20, too long for 28 images in batches of 8.*N below 20"):
        model.check_data(images=28, batch=8)


def test_published_settings_over_resnet50():
    model = SSLModel.from_timm("resnet50", "mocov2")
    assert [tuple(m.weight.shape) for m in model.projector if isinstance(m, nn.Linear)] == [(2048, 2048), (128, 2048)]
    assert not any(isinstance(m, nn.BatchNorm1d) for m in model.projector)
    assert (model.temperature, model.momentum, len(model.queue), model.splits) == (0.2, 0.999, 65536, 8)
