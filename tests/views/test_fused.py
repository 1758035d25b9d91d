"""The fused executor against kornia's own operations and against itself in blocks of other sizes."""

import shutil
from dataclasses import replace

import kornia
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from skimage import data
from torchvision.transforms.v2 import RandomCrop

from hf_essl.config import ViewArguments
from hf_essl.evaluation.features import center_crops
from hf_essl.views import ViewParams, Views
from hf_essl.views.fused import color, render_fused
from hf_essl.views.resample import resize_weights

SIZE, HEIGHT, WIDTH = 64, 40, 56  # crops are enlarged: kornia does not antialias
STRONG = ViewArguments(solarize_p=[0.3], grayscale_p=0.3, jitter=[0.8, 0.8, 0.8, 0.4])
PLAIN = torch.zeros(3), torch.ones(3)


def patches(count, height=HEIGHT, width=WIDTH):
    """Random pieces of four real photographs, uint8 count x 3 x height x width."""
    pictures = [torch.from_numpy(p()).permute(2, 0, 1) for p in (data.astronaut, data.coffee, data.cat, data.rocket)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.stack([RandomCrop((height, width))(pictures[n % 4]) for n in range(count)])


def by_kornia(images, params, size):
    """Each of kornia's operations on all images, kept for those that sampled it."""
    left, top, width, height = (params.box * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).round().T
    right, bottom = left + width - 1, top + height - 1
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=1).view(-1, 4, 2)
    view = kornia.geometry.crop_by_indices(images.float() / 255, corners, (size, size), align_corners=False)
    view = where(params.flip, kornia.geometry.hflip(view), view)
    brightness, contrast, saturation, hue = params.jitter.unbind(dim=1)
    view = kornia.enhance.adjust_brightness_accumulative(view, brightness)
    view = kornia.enhance.adjust_contrast_with_mean_subtraction(view, contrast)
    view = kornia.enhance.adjust_saturation_with_gray_subtraction(view, saturation)
    view = kornia.enhance.adjust_hue(view, 2 * torch.pi * hue)
    view = where(params.grayscale, kornia.color.rgb_to_grayscale(view).expand(-1, 3, -1, -1), view)
    sigma = params.sigma.clamp(min=0.01)[:, None].expand(-1, 2) * size / 224
    kernel = {32: 5, 48: 5, 64: 7, 96: 11}[size]  # a tenth of the side, odd
    view = where(params.sigma > 0, kornia.filters.gaussian_blur2d(view, (kernel, kernel), sigma), view)
    return where(params.solarize, kornia.enhance.solarize(view, 0.5), view)


def in_whole_pixels(params):
    """With boxes of whole pixels, the only ones that kornia can crop."""
    sides = torch.tensor([WIDTH, HEIGHT])
    size = (params.box[:, 2:] * sides).round().clamp(min=1)
    corner = torch.minimum((params.box[:, :2] * sides).round(), sides - size)
    return replace(params, box=torch.cat([corner, size], dim=1) / sides.repeat(2))


def where(mask, yes, no):
    return torch.where(mask[:, None, None, None], yes, no)


@pytest.mark.parametrize("size", [64, 96])
def test_pixels_are_kornias_over_a_thousand_views(size):
    images, views = patches(500), Views(STRONG, seed=size)
    sampled = in_whole_pixels(views.sample(images))
    for share in (sampled.flip, sampled.grayscale, sampled.sigma > 0, sampled.solarize, sampled.jitter[:, 3] != 0):
        assert 100 < share.sum() < 450  # each operation is used and left out
    ours, expected = render_fused(images, sampled, size, *PLAIN), by_kornia(images, sampled, size)
    assert (expected - by_kornia(images, sampled.take(torch.arange(500).roll(1)), size)).abs().mean() > 0.1
    assert (ours - expected).abs().max() < 2 / 255


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_views_are_the_same_by_both_executors(order):
    images = patches(32, 150, 120)  # some crops shrink
    args = ViewArguments(solarize_p=[0.2], jitter_order=order)
    by_fused, by_kornia = (Views(replace(args, view_executor=name)) for name in ("fused", "kornia"))
    (first, second), (other_first, other_second) = by_fused(images, 64), by_kornia(images, 64)
    tolerance = 2 / 255 / 0.224
    torch.testing.assert_close(first, other_first, atol=tolerance, rtol=0)
    torch.testing.assert_close(second, other_second, atol=tolerance, rtol=0)
    assert first.is_contiguous() and second.is_contiguous()


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_blocks_of_views_equal_one_view_at_a_time(monkeypatch, order):
    images, views = patches(10), Views(replace(STRONG, jitter_order=order), seed=2)
    sampled = [views.sample(images) for _ in range(3)]
    one_by_one = torch.stack([views.render(images, params, 32) for params in sampled])
    for block in (1, 3 * 32**2 * 4, 2**30):  # one, four and all views at a time
        monkeypatch.setattr("hf_essl.views.resample.BLOCK", block)
        torch.testing.assert_close(views.render_all(images, sampled, 32), one_by_one, atol=1e-5, rtol=0)


def test_normalized_in_float32_under_autocast_without_changing_the_inputs():
    images, views = patches(4), Views(STRONG, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2), seed=3)
    sampled = views.sample(images)
    before, given = images.clone(), [getattr(sampled, name).clone() for name in sampled.__dataclass_fields__]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        view = views.render(images, sampled, 32)
    assert view.dtype == torch.float32 and torch.equal(images, before)
    assert all(torch.equal(getattr(sampled, n), x) for n, x in zip(sampled.__dataclass_fields__, given, strict=True))
    expected = TF.normalize(render_fused(images, sampled, 32, *PLAIN), [0.1, 0.2, 0.3], [0.5, 0.25, 0.2])
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_solarized_after_the_blur_and_after_normalization():
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    image[:, :, :, 20:] = 255
    params = ViewParams.neutral(1, sigma=torch.tensor([224 / 40]), solarize=torch.tensor([True]))
    view = render_fused(image, params, 40, torch.full((3,), 0.5), torch.full((3,), 0.25))
    step = TF.gaussian_blur(image.float() / 255, [5, 5], [1.0, 1.0])[0, 0, 20]  # kernel of 5 at 40 px, sigma 1 px
    expected = (torch.where(step < 0.5, step, 1 - step) - 0.5) / 0.25
    torch.testing.assert_close(view[0, 0, 20], expected, atol=1e-5, rtol=0)
    assert expected.max() - expected.min() > 1  # the edge is neither black nor white


@pytest.mark.parametrize(("asked", "compiled"), [(None, False), (False, False), (True, True)])
def test_a_cpu_compiles_the_colors_only_on_request(asked, compiled, monkeypatch):
    calls = []
    monkeypatch.setattr("hf_essl.views.fused.compiled_color", lambda: lambda *args: calls.append(color(*args)))
    views, images = Views(ViewArguments(compile_views=asked, jitter_p=1.0)), patches(4)
    expected = Views(ViewArguments(jitter_p=1.0))(images, 32)
    assert all(torch.equal(view, other) for view, other in zip(views(images, 32), expected, strict=True))
    assert bool(calls) == compiled


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_color_is_eager_color():
    compiled = torch.compile(color, dynamic=True, fullgraph=True)
    generator = torch.Generator().manual_seed(1)
    for count, size in ((6, 32), (4, 48)):
        view = torch.rand(count, 3, size, size, generator=generator)
        factors = [torch.rand(count, generator=generator) * 2 for _ in range(2)]
        hue, gray = torch.rand(count, generator=generator) - 0.5, (torch.arange(count) % 2).float()
        given = (*factors, hue, gray, torch.full((3, 1, 1), 0.4), torch.full((3, 1, 1), 0.2))
        torch.testing.assert_close(compiled(view.clone(), *given), color(view.clone(), *given), atol=1e-4, rtol=0)


@pytest.mark.parametrize("aspect", [1 / 1000, 1 / 200, 1 / 60, 60, 200, 1000])
def test_views_and_center_crops_of_a_very_long_image_are_finite(aspect):
    """On its canvas a crop may be narrower than a pixel and hold the center of none."""
    images, aspects = torch.randint(0, 256, (50, 3, 64, 64), dtype=torch.uint8), torch.full((50,), float(aspect))
    views = Views(ViewArguments(resolution=32, resolution_step=1), (0.5,) * 3, (0.5,) * 3)
    for params in views.sample_all(images, [0, 1], aspects):
        assert views.render(images, params).isfinite().all()
    crops = center_crops(32, 0.875, (0.0,) * 3, (1.0,) * 3)(images, aspects)
    assert crops.isfinite().all() and crops.min() >= 0 and crops.max() <= 1.0001


def test_an_interval_between_two_pixels_takes_the_one_it_lies_in():
    index, weights = resize_weights(torch.tensor([3.6]), torch.tensor([0.2]), 8, 2, 3)
    found = torch.zeros(2, 8).scatter_add(1, index[0].long(), weights[0])
    assert torch.equal(found, torch.eye(8)[[3, 3]])
