"""Views: what they sample, their random stream, and the two quantities that change during training."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

from hf_essl.config import ViewArguments
from hf_essl.views import ViewParams, Views

IMAGES = torch.randint(0, 256, (400, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def same(first: ViewParams, second: ViewParams) -> bool:
    return all(torch.equal(one, other) for one, other in zip(vars(first).values(), vars(second).values(), strict=True))


def test_float32_views_of_the_given_size_from_uint8_images():
    views = Views(ViewArguments(resolution=32))
    first, second = views(IMAGES[:4])
    assert first.shape == second.shape == (4, 3, 32, 32)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    views.resolution = 48  # no rebuild is needed
    assert views(IMAGES[:4])[0].shape[-1] == 48


def test_normalized_with_the_given_statistics():
    chain = ViewArguments(
        resolution=32, jitter_p=0, blur_p=[0.0], grayscale_p=0, flip_p=0, crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0]
    )
    gray = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    views = Views(chain, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))
    view, _ = views(gray)
    torch.testing.assert_close(view[0, :, 5, 5], torch.tensor([0.2, 0.0, -0.4]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("magnitude", "ranges"), [(5.0, (0.4, 0.4, 0.4, 0.1)), (6.0, (0.48, 0.48, 0.48, 0.12))])
def test_jitter_ranges_are_simsiams_at_magnitude_five_and_linear(magnitude, ranges):
    views = Views(ViewArguments(jitter_p=1.0))
    views.magnitude = magnitude
    jitter = views.sample(IMAGES).jitter - torch.tensor([1.0, 1.0, 1.0, 0.0])
    for column, limit in zip(jitter.T, ranges, strict=True):
        assert column.abs().max() <= limit + 1e-6
        assert column.abs().max() > 0.97 * limit  # 400 uniform draws come close
        assert column.mean().abs() < 0.1 * limit


def test_simclrs_own_jitter_up_to_the_papers_strongest_magnitude():
    args = ViewArguments(jitter=[0.8, 0.8, 0.8, 0.2], crop_scale=[0.08, 1.0], max_magnitude=6.0, jitter_p=1.0)
    args.check()
    views = Views(args)
    views.magnitude = 6.0
    spread = (views.sample(IMAGES).jitter - torch.tensor([1.0, 1.0, 1.0, 0.0])).abs().amax(dim=0)
    assert spread.tolist() == pytest.approx([0.96, 0.96, 0.96, 0.24], rel=0.03) and spread[3] <= 0.24


def test_a_random_order_changes_nothing_else_that_is_sampled():
    images = IMAGES.repeat(6, 1, 1, 1)
    fixed, shuffled = (
        Views(ViewArguments(jitter_order=order), seed=3).sample(images) for order in ("fixed", "random")
    )
    for name, value in vars(fixed).items():
        assert name == "order" or torch.equal(value, getattr(shuffled, name)), name
    assert fixed.order.unique(dim=0).tolist() == [[0, 1, 2, 3]]
    permutations, counts = shuffled.order.unique(dim=0, return_counts=True)
    assert sorted(map(tuple, permutations.tolist())) == list(itertools.permutations(range(4)))
    assert counts.min() > 60 and counts.max() < 140  # 100 expected of each, standard deviation 9.8


def test_probabilities_are_those_of_the_arguments():
    sampled = Views(ViewArguments(solarize_p=[0.2])).sample(IMAGES.repeat(10, 1, 1, 1))
    neutral = (sampled.jitter == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(dim=1)
    shares = (sampled.flip, ~neutral, sampled.grayscale, sampled.sigma > 0, sampled.solarize)
    for share, expected in zip(shares, (0.5, 0.8, 0.2, 0.5, 0.2), strict=True):
        assert share.float().mean().item() == pytest.approx(expected, abs=0.03)
    assert sampled.sigma[sampled.sigma > 0].min() >= 0.1 and sampled.sigma.max() <= 2.0


def test_crop_areas_and_ratios_are_in_range_and_inside_the_image():
    box = Views(ViewArguments(crop_scale=[0.3, 0.9])).sample(IMAGES).box
    left, top, width, height = box.T
    assert (box[:, :2] >= 0).all() and (left + width <= 1 + 1e-6).all() and (top + height <= 1 + 1e-6).all()
    area, pixel = width * height, 2 / 48  # a box is whole pixels of the 48
    assert area.min() > 0.3 - pixel and area.max() < 0.9 + pixel
    assert area.min() < 0.35 and area.max() > 0.8
    assert (width / height).min() > 0.7 and (width / height).max() < 1.45


@pytest.mark.parametrize("augmentation", ["simclr", "randaugment"])
def test_reproducible_from_the_seed_and_different_on_every_rank_and_step(augmentation):
    views = Views(ViewArguments(augmentation=augmentation))
    views.seed(7, 0, 3)
    sampled = views.sample(IMAGES)
    views.seed(7, 0, 3)
    assert same(views.sample(IMAGES), sampled)
    assert not same(views.sample(IMAGES), sampled)  # the stream continues
    for other in ((8, 0, 3), (7, 1, 3), (7, 0, 4)):
        views.seed(*other)
        assert not same(views.sample(IMAGES), sampled)


def test_the_global_generators_are_not_used():
    torch.manual_seed(11)
    np.random.seed(11)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Views()(IMAGES[:8])
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_first_and_second_views_may_differ():
    views = Views(ViewArguments(blur_p=[1.0, 0.0], solarize_p=[0.0, 1.0]))
    candidates = views.sample_all(IMAGES, [0, 1, 1, 0])
    for params, kind in zip(candidates, [0, 1, 1, 0], strict=True):
        assert len(params) == len(IMAGES)
        assert (params.solarize == bool(kind)).all() and ((params.sigma > 0) != bool(kind)).all()
    boxes = torch.cat([params.box for params in candidates])
    assert len(boxes.unique(dim=0)) > 3.5 * len(IMAGES)  # corners are whole pixels, so a few are equal by chance


@pytest.mark.parametrize("augmentation", ["simclr", "randaugment"])
def test_gather_and_take_choose_the_parameters_of_each_image(augmentation):
    views = Views(ViewArguments(augmentation=augmentation))
    candidates = [views.sample(IMAGES[:5]) for _ in range(3)]
    choice = torch.tensor([2, 0, 1, 1, 2])
    chosen = ViewParams.gather(candidates, choice)
    for n, c in enumerate(choice.tolist()):
        assert same(chosen.take(torch.tensor([n])), candidates[c].take(slice(n, n + 1)))


def test_other_images_are_rejected_in_one_line():
    views = Views()
    with pytest.raises(ValueError, match=r"torch\.float32 \(4, 3, 48, 48\); views need torch\.uint8"):
        views(IMAGES[:4].float())
    with pytest.raises(ValueError, match="3 images with parameters for 4"):
        views.render(IMAGES[:3], views.sample(IMAGES[:4]))


def test_views_of_a_seed_stay_those_of_earlier_versions():
    """Sums and pixel statistics of both kinds, and the state of the random stream, bit for bit."""
    views = Views(ViewArguments(blur_p=[1.0, 0.1], solarize_p=[0.0, 0.2], min_magnitude=4.0), seed=7)
    images = torch.randint(0, 256, (16, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for kind in (0, 1):
        params = views.sample(images, kind)
        view = views.render(images, params, 32)
        found.append(torch.stack([params.box.sum(), params.jitter.sum(), params.sigma.sum(), view.mean(), view.std()]))
    expected = [[27.90914, 49.33303, 14.70054, 0.23271, 0.82999], [27.82065, 49.34363, 1.33169, 0.07085, 0.82999]]
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected), atol=2e-5, rtol=0)
    assert hashlib.sha256(views._stream.numpy().tobytes()).hexdigest()[:16] == "9b9104685bebc454"
