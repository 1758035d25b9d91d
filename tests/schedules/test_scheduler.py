"""Learning rate and momentum as an optimizer gets them."""

import io
import math

import pytest
import torch

from hf_essl.schedules import F1CLR, Cosine, CurveScheduler, OneCycle, WeightDecay


def _sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.2, momentum=0.9)


def _advance(optimizer, scheduler, steps):
    """(lr, momentum) as each of the `steps` optimizer steps uses them."""
    used = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        used.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("curve", "warmup"), [(F1CLR(60, 20), 20), (F1CLR(480, 80), 80), (F1CLR(37, 5), 5), (OneCycle(100, 0.3), 30)]
)
def test_equals_torch_one_cycle_lr_over_all_steps(curve, warmup, name):
    """torch peaks at step pct_start * total_steps - 1 and ends at total_steps - 1."""
    make = {"sgd": _sgd, "adamw": lambda: torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.2)}[name]
    ours, theirs = make(), make()
    length = int(curve.length)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.2, total_steps=length + 1, pct_start=(warmup + 1) / (length + 1), div_factor=math.inf
    )
    ours, theirs = _advance(ours, CurveScheduler(ours, curve), length), _advance(theirs, torchs, length)
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-12)


def test_cosine_does_not_change_momentum():
    optimizer = _sgd()
    used = _advance(optimizer, CurveScheduler(optimizer, Cosine(10)), 10)
    assert {momentum for _, momentum in used} == {0.9}


def test_a_group_with_fixed_lr_keeps_the_peak_and_shares_the_momentum():
    backbone, predictor = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [backbone]}, {"params": [predictor], "fixed_lr": True}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    scheduler = CurveScheduler(optimizer, F1CLR(40, 8))
    for _ in range(30):
        assert optimizer.param_groups[1]["lr"] == 0.2
        assert optimizer.param_groups[1]["momentum"] == optimizer.param_groups[0]["momentum"]
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("stop", [1, 7, 33])
def test_a_resumed_scheduler_continues_bit_for_bit(stop):
    optimizer = _sgd()
    straight = _advance(optimizer, CurveScheduler(optimizer, F1CLR(50, 10)), 50)

    optimizer = _sgd()
    scheduler = CurveScheduler(optimizer, F1CLR(50, 10))
    _advance(optimizer, scheduler, stop)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    optimizer = _sgd()
    scheduler = CurveScheduler(optimizer, F1CLR(50, 10))
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    assert _advance(optimizer, scheduler, 50 - stop) == straight[stop:]


def test_an_optimizer_without_momentum_is_rejected_only_if_the_curve_cycles_it():
    adagrad = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    CurveScheduler(adagrad, Cosine(10))
    with pytest.raises(ValueError, match="F1CLR cycles momentum but Adagrad has none; use an optimizer such as sgd"):
        CurveScheduler(adagrad, F1CLR(10, 2))


def _groups():
    return [{"params": [torch.nn.Parameter(torch.ones(2))]}, {"params": [torch.nn.Parameter(torch.ones(2))]}]


def test_weight_decay_follows_a_cosine_except_for_undecayed_groups():
    """From 0.04 to 0.4 over 6 steps: 0.22 -/+ 0.18 cos(k pi / 6)."""
    decayed, rest = _groups()
    optimizer = torch.optim.AdamW([decayed, rest | {"weight_decay": 0.0, "undecayed": True}], lr=0.1)
    scheduler = CurveScheduler(optimizer, Cosine(6), weight_decay=WeightDecay(0.04, 0.4, 6))
    used = []
    for _ in range(6):
        used.append(optimizer.param_groups[0]["weight_decay"])
        assert optimizer.param_groups[1]["weight_decay"] == 0.0
        optimizer.step()
        scheduler.step()
    by_hand = [0.04, 0.0641154, 0.13, 0.22, 0.31, 0.3758846]
    assert used == pytest.approx(by_hand, abs=1e-7)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.4)
    assert "weight_decay" not in scheduler.state_dict()


def test_a_weight_decay_that_the_optimizer_lacks_is_rejected():
    rprop = torch.optim.Rprop([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=r"weight_decay_end is 0.4 but Rprop has no weight decay; use an optimizer"):
        CurveScheduler(rprop, Cosine(6), weight_decay=WeightDecay(0.04, 0.4, 6))
