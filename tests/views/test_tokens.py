"""Which patch tokens a view keeps: their number by hand, and that they look random and belong to the view alone."""

import pytest
import torch

from hf_essl.config import ViewArguments
from hf_essl.views import Views
from hf_essl.views.params import ViewParams
from hf_essl.views.tokens import kept_count, kept_tokens


@pytest.mark.parametrize(
    ("resolution", "patch", "share", "count"),
    [
        (224, 16, 0.25, 49),
        (224, 16, 0.5, 98),
        (224, 32, 0.5, 24),  # of 49, rounded down
        (96, 16, 0.75, 27),
        (96, 8, 0.75, 108),
        (64, 16, 0.25, 4),
        (64, 8, 0.3, 19),
        (32, 16, 0.1, 1),  # never none
        (98, 14, 1.0, 49),
    ],
)
def test_the_number_of_kept_tokens_by_hand(resolution, patch, share, count):
    patches = (resolution // patch) ** 2
    assert kept_count(patches, share) == count
    assert kept_tokens(torch.tensor([7, 8]), patches, share).shape == (2, count)


def test_kept_tokens_are_different_positions_in_order():
    kept = kept_tokens(torch.randint(2**32, (100,)), 49, 0.5)
    assert (kept[:, 1:] > kept[:, :-1]).all() and kept.min() >= 0 and kept.max() <= 48
    assert len(kept.unique(dim=0)) == 100


def test_each_token_is_kept_equally_often_and_whatever_else_is_kept():
    """Of 20,000 views: each token in a quarter of them, each two tokens in 12 / 49 x 11 / 48 of them."""
    kept = kept_tokens(torch.arange(20_000), 49, 0.25)  # seeds that differ in few bits
    is_kept = torch.zeros(20_000, 49).scatter_(1, kept, 1.0)
    together = is_kept.T @ is_kept / 20_000
    torch.testing.assert_close(together.diagonal(), torch.full((49,), 12 / 49), atol=0.015, rtol=0)  # 5 sigma
    pairs = together[~torch.eye(49, dtype=torch.bool)]
    torch.testing.assert_close(pairs, torch.full_like(pairs, 12 / 49 * 11 / 48), atol=0.01, rtol=0)  # 6 sigma


def test_the_tokens_of_a_view_depend_on_its_seed_alone():
    seeds = torch.tensor([3, 2**32 - 1, 12_345])
    together = kept_tokens(seeds, 64, 0.5)
    assert all(torch.equal(kept_tokens(seeds[[row]], 64, 0.5)[0], together[row]) for row in range(3))


def test_a_larger_share_keeps_the_tokens_of_a_smaller_one():
    few, many = (kept_tokens(torch.arange(50), 64, share) for share in (0.25, 0.75))
    assert all(set(small.tolist()) < set(large.tolist()) for small, large in zip(few, many, strict=True))


def test_views_sample_a_seed_per_view_and_other_views_stay_as_they_were():
    images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    plain, dropping = (
        Views(ViewArguments(resolution=16, resolution_step=16, min_tokens=share), seed=5) for share in (1.0, 0.5)
    )
    (first, second), others = dropping.sample_all(images, (0, 1)), plain.sample_all(images, (0, 1))
    assert len(torch.cat([first.tokens, second.tokens]).unique()) == 16
    assert all(torch.equal(ours.box, theirs.box) for ours, theirs in zip((first, second), others, strict=True))
    assert plain.kept_tokens(others, 16, images.device) is None
    kept = dropping.kept_tokens([first, second], 16, images.device)
    assert kept.shape == (8, 2, 8)
    choice = torch.tensor([0, 1] * 4)
    chosen = ViewParams.gather([first, second], choice)
    assert torch.equal(dropping.kept_tokens([chosen], 16, images.device)[:, 0], kept[torch.arange(8), choice])
