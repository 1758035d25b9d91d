"""Both executors against torchvision's operations, by hand, and against themselves at another size."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hf_essl.config import ViewArguments
from hf_essl.views import ViewParams, Views
from hf_essl.views.fused import render_fused
from hf_essl.views.params import NEUTRAL_JITTER
from hf_essl.views.render import render_kornia
from hf_essl.views.resample import resample, resize_weights, taps


@pytest.fixture(params=[render_fused, render_kornia])
def render_view(request):
    """Either executor, without normalization."""

    def render(images, params, size):
        return request.param(images, params, size, torch.zeros(3), torch.ones(3))

    return render


@settings(max_examples=60, deadline=None)
@given(
    left=st.integers(0, 150), top=st.integers(0, 150), width=st.integers(2, 74), height=st.integers(2, 74),
    size=st.sampled_from([16, 32, 64, 96]), flip=st.booleans(),
)  # fmt: skip
def test_crop_equals_torchvisions_antialiased_resized_crop(photos, left, top, width, height, size, flip):
    box = torch.tensor([[left / 224, top / 224, width / 224, height / 224]])
    ours = resample(photos[:1], box, torch.tensor([flip]), size)
    expected = TF.resized_crop(photos[:1].float() / 255, top, left, height, width, [size, size], antialias=True)
    expected = expected.flip(-1) if flip else expected
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)


def test_whole_image_at_its_own_size_is_the_image(render_view, photos):
    view = render_view(photos, ViewParams.neutral(2), 224)
    torch.testing.assert_close(view, photos.float() / 255, atol=1e-6, rtol=0)


def test_images_may_be_permuted_and_not_contiguous(render_view, photos):
    permuted = photos.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not permuted.is_contiguous()
    params = ViewParams.neutral(len(photos), box=torch.tensor([[0.1, 0.2, 0.7, 0.6]]).repeat(len(photos), 1))
    assert torch.equal(render_view(permuted, params, 48), render_view(photos, params, 48))


def test_resize_weights_by_hand():
    # 4 pixels to 2 samples: centers at 1 and 3, filter of half-width 2, pixel centers at .5, 1.5, 2.5, 3.5
    assert taps(4.0, 2) == 5
    pixels, weights = resize_weights(torch.tensor([0.0]), torch.tensor([4.0]), 4, 2, 5)
    dense = torch.zeros(2, 4).scatter_add(1, pixels[0].long(), weights[0])
    expected = torch.tensor([[0.75, 0.75, 0.25, 0.0], [0.0, 0.25, 0.75, 0.75]])
    torch.testing.assert_close(dense, expected / expected.sum(dim=1, keepdim=True))


def test_a_small_view_looks_like_the_full_one_downsampled(render_view, photos):
    sampled = Views(ViewArguments(), seed=3).sample(photos)
    small, full = render_view(photos, sampled, 64), render_view(photos, sampled, 224)
    downsampled = F.interpolate(full, size=(64, 64), mode="bilinear", antialias=True)
    assert (small - downsampled).abs().mean() < 0.02
    other = render_view(photos, Views(ViewArguments(), seed=4).sample(photos), 64)
    assert (other - downsampled).abs().mean() > 0.05  # the measure distinguishes views


@pytest.mark.parametrize("factors", [(1.3, 0.7, 1.4, 0.1), (0.6, 1.4, 0.5, -0.3)])
def test_jitter_is_torchvisions(render_view, photos, factors):
    view = photos.float() / 255
    adjustments = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for adjust, factor in zip(adjustments, factors, strict=True):
        view = adjust(view, factor)
    ours = render_view(photos, ViewParams.neutral(2, jitter=torch.tensor([factors] * 2)), 224)
    torch.testing.assert_close(ours, view, atol=1e-3, rtol=0)  # its gray weights have one more digit


@pytest.mark.parametrize("seed", range(3))
def test_jitter_in_any_order_is_torchvisions_in_that_order(render_view, photos, seed):
    """Each image has its own factors and its own order."""
    adjustments = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    generator = torch.Generator().manual_seed(seed)
    images = photos.repeat(4, 1, 1, 1)
    spread = torch.tensor([0.8, 0.8, 0.8, 0.2])
    factors = NEUTRAL_JITTER + spread * (2 * torch.rand(8, 4, generator=generator) - 1)
    factors[3, 1], factors[5] = 1.0, NEUTRAL_JITTER  # one operation is off, one image has none
    order = torch.rand(8, 4, generator=generator).argsort(dim=1)
    expected = (images / 255).clone()
    for n, row in enumerate(order.tolist()):
        for column in row:
            expected[n] = adjustments[column](expected[n], factors[n, column].item())
    ours = render_view(images, ViewParams.neutral(8, jitter=factors, order=order), 224)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)  # its gray weights have one more digit
    in_fixed_order = render_view(images, ViewParams.neutral(8, jitter=factors), 224)
    assert (in_fixed_order - expected).abs().max() > 0.1  # the order matters


def test_operations_change_only_the_images_that_sampled_them(render_view, photos):
    plain = render_view(photos, ViewParams.neutral(2), 96)
    only_second = torch.tensor([False, True])
    for changes in (
        {"flip": only_second},
        {"grayscale": only_second},
        {"solarize": only_second},
        {"sigma": torch.tensor([0.0, 2.0])},
        {"jitter": torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.3, 0.7, 1.0, 0.05]])},
    ):
        changed = render_view(photos, ViewParams.neutral(2, **changes), 96)
        torch.testing.assert_close(changed[0], plain[0])
        assert (changed[1] - plain[1]).abs().mean() > 1e-3, changes


def test_solarize_and_grayscale_by_hand(render_view):
    image = torch.tensor([51, 204, 102], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)  # 0.2, 0.8, 0.4
    solarized = render_view(image, ViewParams.neutral(1, solarize=torch.tensor([True])), 8)
    torch.testing.assert_close(solarized[0, :, 0, 0], torch.tensor([0.2, 0.2, 0.4]))  # 1 - 0.8
    gray = render_view(image, ViewParams.neutral(1, grayscale=torch.tensor([True])), 8)
    torch.testing.assert_close(gray[0, :, 0, 0], torch.full((3,), 0.299 * 0.2 + 0.587 * 0.8 + 0.114 * 0.4))


@pytest.mark.parametrize("size", [224, 64])
def test_blur_equals_torchvisions_gaussian_at_its_scaled_sigma(render_view, photos, size):
    plain = render_view(photos, ViewParams.neutral(2), size)
    blurred = render_view(photos, ViewParams.neutral(2, sigma=torch.tensor([1.5, 1.5])), size)
    kernel = {224: 23, 64: 7}[size]
    expected = TF.gaussian_blur(plain, [kernel, kernel], [1.5 * size / 224] * 2)
    torch.testing.assert_close(blurred, expected, atol=1e-4, rtol=0)
