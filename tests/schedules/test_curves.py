"""Curves against values computed by hand; `test_scheduler.py` compares them with torch's OneCycleLR."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_essl.schedules import F1CLR, Constant, Cosine, CosineWarmup, OneCycle, curve_from_args

HALF_WAVE_QUARTER = (1 + math.sqrt(0.5)) / 2  # (cos(pi / 4) + 1) / 2 = 0.8535...


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        (Cosine(100), {0: 1, 25: HALF_WAVE_QUARTER, 50: 0.5, 75: 1 - HALF_WAVE_QUARTER, 100: 0}),
        (CosineWarmup(100, 20), {0: 0, 5: 0.25, 10: 0.5, 20: 1, 40: HALF_WAVE_QUARTER, 60: 0.5, 100: 0}),
        (F1CLR(480, 80), {0: 0, 20: 1 - HALF_WAVE_QUARTER, 40: 0.5, 80: 1, 180: HALF_WAVE_QUARTER, 280: 0.5, 480: 0}),
        (OneCycle(100, 0.3), {0: 0, 15: 0.5, 30: 1, 65: 0.5, 100: 0}),
        (Constant(), {0: 1, 7: 1}),
    ],
)
def test_lr_at_hand_computed_steps(curve, values):
    assert {t: curve.lr(t) for t in values} == pytest.approx(values, abs=1e-12)


def test_momentum_is_high_at_the_ends_and_low_at_the_peak():
    curve = F1CLR(480, 80)
    assert [curve.momentum(t) for t in (0, 40, 80, 280, 480)] == pytest.approx([1, 0.5, 0, 0.5, 1], abs=1e-12)
    assert [c.momentum(3) for c in (Cosine(9), CosineWarmup(9, 2), Constant())] == [None, None, None]


@given(st.floats(1, 1e6), st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_curves_stay_in_bounds_rise_to_the_warm_up_and_fall_after_it(length, fraction, a, b):
    warmup = fraction * length
    for curve in (CosineWarmup(length, warmup), F1CLR(length, warmup), OneCycle(length, fraction)):
        rise = sorted((a * warmup, b * warmup))
        fall = sorted((warmup + a * (length - warmup), warmup + b * (length - warmup)))
        fall = [min(t, length) for t in fall]
        assert 0 <= curve.lr(rise[0]) <= curve.lr(rise[1]) + 1e-12
        assert 1 + 1e-12 >= curve.lr(fall[0]) + 1e-12 >= curve.lr(fall[1]) >= 0
        momentum = curve.momentum(fall[0])
        assert momentum is None or 0 <= momentum <= 1


def test_a_longer_f1_clr_run_keeps_its_rise_and_a_longer_one_cycle_stretches_it():
    rise = range(0, 81, 8)
    assert [F1CLR(480, 80).lr(t) for t in rise] == [F1CLR(800, 80).lr(t) for t in rise]
    assert OneCycle(800, 1 / 6).lr(80) < OneCycle(480, 1 / 6).lr(80) == 1


def _args(schedule, warmup_epochs=0.0, one_cycle_fraction=0.3):
    return SimpleNamespace(
        lr_schedule=schedule, warmup_epochs=warmup_epochs, num_train_epochs=480, one_cycle_fraction=one_cycle_fraction
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (_args("cosine"), Cosine(600)),
        (_args("constant"), Constant()),
        (_args("cosine_warmup", 120), CosineWarmup(600, 150)),
        (_args("f1_clr", 120), F1CLR(600, 150)),
        (_args("one_cycle", one_cycle_fraction=0.5), OneCycle(600, 0.5)),
    ],
)
def test_curve_from_args_by_name(args, expected):
    assert curve_from_args(args, 600) == expected


def test_a_run_of_few_steps_still_reaches_the_peak():
    curve = curve_from_args(_args("f1_clr", 80), 2)
    assert [curve.lr(t) for t in (0, 1 / 3, 2)] == pytest.approx([0, 1, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(0), "length is 0 steps"),
        (lambda: F1CLR(100, 100), "warmup is 100 steps in a run of 100"),
        (lambda: CosineWarmup(100, -1), "warmup is -1 steps in a run of 100"),
        (lambda: OneCycle(100, 1.0), "warmup is 100 steps in a run of 100"),
        (lambda: F1CLR(100, 10).lr(101), "step 101 is outside of the schedule's 100 steps"),
        (lambda: curve_from_args(_args("linear"), 10), "choose one of cosine, cosine_warmup"),
        (lambda: curve_from_args(_args("cosine", 10), 10), "cosine, which has no warm-up"),
        (lambda: curve_from_args(_args("f1_clr"), 10), "f1_clr needs a value above 0"),
        (lambda: curve_from_args(_args("f1_clr", 480), 10), "not shorter than num_train_epochs 480"),
    ],
)
def test_bad_input_is_rejected_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
