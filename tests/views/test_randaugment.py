"""RandAugment: its operations against kornia's policy, torchvision and PIL, its scale, and its sampling."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.augmentation.auto import RandAugment
from kornia.augmentation.auto.rand_augment.rand_augment import default_policy
from PIL import ImageOps
from timm.data.auto_augment import solarize_add
from torch.nn import functional as F

from hf_essl.config import ViewArguments
from hf_essl.config.views import MAX_RANDAUGMENT
from hf_essl.views import ViewParams, Views
from hf_essl.views.randaugment import OPERATIONS, augment_, check_operations
from hf_essl.views.render import render_kornia

IMAGES = torch.randint(0, 256, (400, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAMES = list(OPERATIONS)
WITHOUT_STRENGTH = ["auto_contrast", "equalize", "invert"]
WITH_STRENGTH = [name for name in NAMES if name not in WITHOUT_STRENGTH]
AS_IN_KORNIA = [*WITHOUT_STRENGTH, "rotate", "posterize", "shear_x", "shear_y", "translate_x", "translate_y"]


def arguments(**changes):
    return ViewArguments(**{"augmentation": "randaugment", "resolution": 64, **changes})


def render(images, params, size):
    return render_kornia(images, params, size, torch.zeros(3), torch.ones(3))


def apply(view, name, strength):
    """One operation at a strength in [-1, 1], or at one for each image."""
    strengths = torch.as_tensor(strength, dtype=torch.float32).expand(len(view))[:, None]
    return augment_(view.clone(), torch.full((len(view), 1), NAMES.index(name)), strengths)


# ---- the operations ----


def test_the_set_is_kornias():
    assert [entry[0][0] for entry in default_policy] == NAMES


@pytest.mark.parametrize("magnitude", [3, 10, 15, 29])
@pytest.mark.parametrize("name", AS_IN_KORNIA)
def test_operation_equals_kornias_policy(photos, name, magnitude):
    view = photos.float() / 255
    torch.manual_seed(magnitude)
    policy = RandAugment(n=1, m=magnitude, policy=[entry for entry in default_policy if entry[0][0] == name])
    params = policy.forward_parameters(view.shape)
    factors = params[0].data[0].data
    key = {"rotate": "degrees", "posterize": "bits_factor"}.get(name, name)
    signs = torch.sign(factors[key]) if key in factors else torch.ones(2)
    expected = policy(view, params=params)
    torch.testing.assert_close(apply(view, name, signs * magnitude / MAX_RANDAUGMENT), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(
    ("name", "oracle", "tolerance"),
    [
        ("color", TF.adjust_saturation, 2e-4),  # torchvision's gray has 0.2989 of red
        ("contrast", TF.adjust_contrast, 2e-4),
        ("brightness", TF.adjust_brightness, 1e-6),
        ("sharpness", TF.adjust_sharpness, 1e-5),
    ],
)
def test_enhancement_equals_torchvisions_with_kornias_ends(photos, name, oracle, tolerance, strength):
    view = photos.float() / 255
    (_, low, high), factor = next(e[0] for e in default_policy if e[0][0] == name), 1 + 0.9 * strength
    assert low - 1e-6 <= factor <= high + 1e-6
    torch.testing.assert_close(apply(view, name, strength), oracle(view, factor), atol=tolerance, rtol=0)


@pytest.mark.parametrize("magnitude", [0, 7.5, 15, 22.5, 30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_solarizations_and_posterize_equal_pils(photos, magnitude, sign):
    share = magnitude / MAX_RANDAUGMENT
    oracles = {
        "solarize": lambda image: ImageOps.solarize(image, 256 * (1 - share)),
        "solarize_add": lambda image: solarize_add(image, round(110 * share)),
        "posterize": lambda image: ImageOps.posterize(image, int(8 - 4 * share)),
    }
    for name, oracle in oracles.items():
        expected = torch.stack([TF.pil_to_tensor(oracle(TF.to_pil_image(photo))) for photo in photos])
        ours = apply(photos.float() / 255, name, sign * share) * 255
        torch.testing.assert_close(ours, expected.float(), atol=0.7, rtol=0, msg=name)  # 0.43 is 109.65 of 255


def test_equalize_and_auto_contrast_equal_pils(photos):
    for name, oracle in (("equalize", ImageOps.equalize), ("auto_contrast", ImageOps.autocontrast)):
        expected = torch.stack([TF.pil_to_tensor(oracle(TF.to_pil_image(photo))) for photo in photos])
        ours = apply(photos.float() / 255, name, 1.0) * 255
        torch.testing.assert_close(ours, expected.float(), atol=1.01, rtol=0, msg=name)  # PIL truncates


def test_geometry_by_hand():
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20, 20] = 1.0

    def peak(name, strength):
        return divmod(apply(image, name, strength)[0, 0].argmax().item(), 40)

    assert peak("translate_x", 1.0) == (20, 24)  # a tenth of the side to the right
    assert peak("translate_y", -0.5) == (18, 20)
    corner = torch.zeros(1, 3, 41, 41)
    corner[..., 30, 20] = 1.0  # 10 below the center
    row, column = divmod(apply(corner, "rotate", 1.0)[0, 0].argmax().item(), 41)
    assert (row, column) == (20 + 9, 20 + 5)  # 10 (cos, sin) of 30 degrees, against the clock
    row, column = divmod(apply(corner, "shear_x", 0.5)[0, 0].argmax().item(), 41)
    assert (row, column) == (30, 20 - 5)  # 10 tan 27 degrees


def test_views_stay_in_the_unit_range(photos):
    for name in NAMES:
        for strength in (-1.0, 1.0):
            view = apply(photos.float() / 255, name, strength)
            assert view.dtype == torch.float32 and view.min() >= 0 and view.max() <= 1, name


def test_operations_change_only_the_images_that_sampled_them_and_in_their_order(photos):
    view = photos.float() / 255
    first, second = NAMES.index("invert"), NAMES.index("solarize_add")
    ours = augment_(view.clone(), torch.tensor([[first, second], [second, first]]), torch.ones(2, 2))
    assert torch.equal(ours[:1], apply(apply(view[:1], "invert", 1.0), "solarize_add", 1.0))
    assert torch.equal(ours[1:], apply(apply(view[1:], "solarize_add", 1.0), "invert", 1.0))
    assert (ours[:1] - apply(apply(view[:1], "solarize_add", 1.0), "invert", 1.0)).abs().mean() > 0.1


# ---- the scale ----


@pytest.mark.parametrize("name", WITH_STRENGTH)
@settings(max_examples=8, deadline=None)
@given(low=st.floats(0, 29), step=st.floats(1, 30), sign=st.sampled_from([-1, 1]))
def test_strength_grows_with_the_magnitude(photos, name, low, step, sign):
    view = F.avg_pool2d(photos.float() / 255, 4)
    weak, strong = (
        (apply(view, name, sign * m / MAX_RANDAUGMENT) - view).abs().mean() for m in (low, min(low + step, 30))
    )
    assert strong >= weak - 1e-6
    if name not in ("posterize", "sharpness"):
        assert strong > weak


@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_magnitude_zero_is_the_image(photos, name):
    view = photos.float() / 255
    assert (view == 1).any()  # white is the first to be solarized
    torch.testing.assert_close(apply(view, name, 0.0), view, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_same_parameters_give_the_same_picture_at_64_and_128_pixels(photos, name):
    for strength in (-0.5, -0.2, 0.2, 0.5):
        params = ViewParams.neutral(
            2,
            box=torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.0, 0.7, 0.6]]),
            flip=torch.tensor([True, False]),
            operations=torch.full((2, 1), NAMES.index(name)),
            strengths=torch.full((2, 1), strength),
        )
        small, large = render(photos, params, 64), render(photos, params, 128)
        downsampled = F.interpolate(large, size=(64, 64), mode="bilinear", antialias=True)
        difference = (small - downsampled).abs().mean()
        assert difference < (0.025 if name in ("equalize", "solarize") else 0.012)  # integer steps, thresholds
        effect = (large - render(photos, ViewParams.neutral(2, box=params.box, flip=params.flip), 128)).abs().mean()
        if effect > 0.02:  # posterize and sharpness hardly change the mean
            assert difference < effect / 4


def test_sharpness_scales_with_the_picture(photos):
    # at the same strength, the 3-pixel kernel changes 64 px views about (224 / 64)^2 = 12 times as much
    full, small = (render(photos, ViewParams.neutral(2), size) for size in (224, 64))
    changed = apply(full, "sharpness", 1.0) - full
    downsampled = F.interpolate(changed, size=(64, 64), mode="bilinear", antialias=True)
    ratio = (apply(small, "sharpness", 1.0) - small).abs().mean() / downsampled.abs().mean()
    assert 0.5 < ratio < 2


# ---- sampling ----


@pytest.mark.parametrize("operations", [1, 2, len(OPERATIONS)])
def test_distinct_operations_sampled_evenly_at_the_current_magnitude(operations):
    views = Views(arguments(randaugment_ops=operations))
    views.magnitude = 7.5
    sampled = views.sample(IMAGES.repeat(10, 1, 1, 1))
    assert sampled.operations.shape == sampled.strengths.shape == (4000, operations)
    assert all(len(set(row)) == operations for row in sampled.operations[:200].tolist())
    shares = sampled.operations.flatten().bincount(minlength=len(OPERATIONS)) / sampled.operations.numel()
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / len(OPERATIONS)), atol=0.015, rtol=0)
    assert (sampled.strengths.abs() == 0.25).all()
    assert abs((sampled.strengths > 0).float().mean().item() - 0.5) < 0.03
    views.magnitude = 15.0  # what SuperProgressiveCallback does
    assert (views.sample(IMAGES).strengths.abs() == 0.5).all()


def test_crop_and_flip_but_nothing_else_of_simclr():
    sampled = Views(arguments(blur_p=[1.0, 1.0], solarize_p=[1.0])).sample(IMAGES, kind=1)
    assert sampled.flip.float().mean().item() == pytest.approx(0.5, abs=0.1)
    area = sampled.box[:, 2] * sampled.box[:, 3]
    assert 0.15 < area.min() < 0.3 and area.max() > 0.8
    assert (sampled.jitter == torch.tensor([1.0, 1.0, 1.0, 0.0])).all() and not (sampled.sigma > 0).any()
    assert not sampled.grayscale.any() and not sampled.solarize.any()


# ---- bad values ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_magnitude": 31.0}, "magnitudes are 5.0 to 31.0; RandAugment's scale is 0 to 30"),
        ({"randaugment_ops": 16}, "randaugment_ops is 16; RandAugment has 15, use 1 to 15"),
        ({"augmentation": "simclr", "max_magnitude": 30.0}, "hue x magnitude / 5 must be at most 0.5"),
    ],
)
def test_bad_values_are_rejected_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        arguments(**changes).check()
        check_operations(arguments(**changes))
    assert "\n" not in str(error.value)


def test_the_limits_themselves_are_accepted():
    args = arguments(min_magnitude=0.0, max_magnitude=MAX_RANDAUGMENT, randaugment_ops=len(OPERATIONS))
    args.check()
    check_operations(args)


def test_a_magnitude_outside_of_the_scale_is_rejected_when_sampling():
    views = Views(arguments())
    views.magnitude = 31.0
    with pytest.raises(ValueError, match=r"magnitude is 31\.0; RandAugment's scale is 0 to 30"):
        views.sample(IMAGES)
