"""The share of patch tokens over a run, together with the resolution."""

import pytest

from hf_essl.config import ViewArguments
from hf_essl.schedules import Curriculum, Size, SuperProgressiveCallback, TokenSchedule
from hf_essl.views import Views


def curriculum(warmup=0.0, **views):
    return Curriculum.with_warmup(ViewArguments(**views), warmup)


def test_a_sequence_of_shares_by_hand():
    tokens = curriculum(min_tokens=0.25).tokens
    assert [tokens(step / 12) for step in range(12)] == [0.25] * 3 + [0.5] * 3 + [0.75] * 3 + [1.0] * 3
    assert tokens(1.0) == 1.0
    tokens = curriculum(min_tokens=0.4, max_tokens=0.8, token_stages=3).tokens
    assert [tokens(step / 7) for step in range(7)] == pytest.approx([0.4, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])
    assert {curriculum().tokens(step / 7) for step in range(7)} == {1.0}


def test_sizes_of_a_run_by_hand():
    """A quarter of the run at 96 px, then three stages of a quarter; tokens change at the same quarters, or halves."""
    views = {"resolution": 96, "min_resolution": 32, "resolution_schedule": "super_progressive"}
    quarters = curriculum(0.25, **views, min_tokens=0.25)
    assert quarters.shares() == {Size(32, 0.5): 0.25, Size(64, 0.75): 0.25, Size(96, 0.25): 0.25, Size(96, 1.0): 0.25}
    thirds = curriculum(0.25, **views, min_tokens=0.5, token_stages=3)
    expected = {
        (32, 0.5): 1 / 12,
        (32, 0.75): 1 / 6,
        (64, 0.75): 1 / 6,
        (64, 1): 1 / 12,
        (96, 0.5): 1 / 4,
        (96, 1): 1 / 4,
    }
    assert thirds.shares() == pytest.approx({Size(*size): share for size, share in expected.items()})
    assert list(thirds.shares()) == sorted(thirds.shares())
    assert sum(thirds.steps(1000).values()) == 1000
    for size, share in thirds.shares().items():
        assert thirds.steps(1000)[size] == pytest.approx(1000 * share, abs=1.01)


def test_without_tokens_the_sizes_are_the_resolutions():
    only = curriculum(0.2, resolution=96, min_resolution=32, resolution_schedule="super_progressive")
    assert {size.resolution: share for size, share in only.shares().items()} == pytest.approx(only.resolution.shares())
    assert {size.tokens for size in only.shares()} == {1.0}
    assert [str(Size(96)), str(Size(96, 0.25))] == ["96 px", "96 px, 25 % of the tokens"]


def test_the_callback_is_the_writer():
    class State:
        global_step, max_steps = 3, 4

    views = Views(ViewArguments(resolution=64, min_tokens=0.5, token_stages=2))
    assert views.tokens == 0.5
    SuperProgressiveCallback(views, curriculum(resolution=64, min_tokens=0.5, token_stages=2)).on_step_begin(
        None, State, None
    )
    assert (views.resolution, views.tokens) == (64, 1.0)


@pytest.mark.parametrize("progress", [-0.1, 1.1])
def test_progress_outside_of_the_run(progress):
    with pytest.raises(ValueError, match="progress is"):
        TokenSchedule(0.5, 1.0)(progress)


def test_a_schedule_has_two_stages():
    with pytest.raises(ValueError, match="stages is 1"):
        TokenSchedule(0.5, 1.0, 1)
