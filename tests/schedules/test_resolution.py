"""Resolution and magnitude over a run (Sec. 3.2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_essl.config import ViewArguments
from hf_essl.schedules import Curriculum, MagnitudeSchedule, ResolutionSchedule


def stages(schedule, low=96, high=224, warmup=80 / 480):
    """The resolutions of a curriculum."""
    views = ViewArguments(resolution=high, min_resolution=low, resolution_schedule=schedule)
    return Curriculum.with_warmup(views, warmup).resolution


def test_imagenette_recipe_of_table_10():
    """480 epochs, 80 of warm-up at 224, then five stages of 80 epochs, multiples of 32 from 96 (Table 10, Fig. 3)."""
    schedule = stages("super_progressive")
    by_epoch = [schedule((epoch + 0.5) / 480) for epoch in range(480)]
    assert by_epoch == [224] * 80 + [96] * 80 + [128] * 80 + [160] * 80 + [192] * 80 + [224] * 80
    assert schedule(0) == schedule(79.999 / 480) == 224
    assert schedule(80 / 480) == 96


def test_progressive_and_constant_have_no_warm_up_stage():
    assert [stages("progressive")((k + 0.5) / 5) for k in range(5)] == [96, 128, 160, 192, 224]
    assert stages("constant").shares() == {224: 1.0}


@given(low=st.integers(1, 6), more=st.integers(0, 8), warmup=st.floats(0.001, 0.9), steps=st.integers(50, 3000))
def test_stages_rise_and_are_equally_long_within_a_step(low, more, warmup, steps):
    schedule = stages("super_progressive", 32 * low, 32 * (low + more), warmup)
    sizes = [schedule(step / steps) for step in range(steps)]
    start = next(step for step in range(steps) if step / steps >= warmup)
    assert set(sizes[:start]) == {32 * (low + more)}
    assert sizes[start:] == sorted(sizes[start:])
    counts = [sizes[start:].count(32 * k) for k in range(low, low + more + 1)]
    assert sum(counts) == steps - start
    assert max(counts) - min(counts) <= 2  # each end of a stage moves by less than a step


@given(st.integers(1, 6), st.integers(0, 8), st.floats(0.001, 0.9))
def test_shares_equal_the_counted_steps(low, more, warmup):
    schedule = stages("super_progressive", 32 * low, 32 * (low + more), warmup)
    sizes = [schedule((step + 0.5) / 4000) for step in range(4000)]
    counted = {size: sizes.count(size) / 4000 for size in sorted(set(sizes))}
    assert schedule.shares() == pytest.approx(counted, abs=1e-3)
    assert sum(schedule.shares().values()) == pytest.approx(1)


def test_the_end_of_the_run_belongs_to_the_last_stage():
    assert ResolutionSchedule((96, 128), 0.3, 128)(1.0) == 128


def test_magnitude_is_linear_over_the_whole_run():
    magnitude = Curriculum.with_warmup(ViewArguments(min_magnitude=4, max_magnitude=6), 0.0).magnitude
    assert [magnitude(p) for p in (0, 0.25, 0.5, 1)] == [4, 4.5, 5, 6]
    assert MagnitudeSchedule(5, 5)(0.7) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stages("super_progressive", warmup=0.0), "no warm-up; set lr_schedule to f1_clr"),
        (lambda: stages("progressive")(1.01), "progress is 1.01"),
        (lambda: MagnitudeSchedule(4, 6)(-0.1), "progress is -0.1"),
        (lambda: ResolutionSchedule((), 0.0, 224), "stages is empty"),
        (lambda: ResolutionSchedule((96,), 1.0, 96), "warmup is 1.0"),
    ],
)
def test_bad_input_is_rejected_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
