"""The fused executor against kornia's own operations, one after the other, and against itself in other portions."""

import shutil
import sys

import kornia
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from skimage import data

from hf_essl.config import ViewArguments
from hf_essl.views import ViewParams, Views
from hf_essl.views import fused as fused_module
from hf_essl.views.fused import colour, render_fused
from hf_essl.views.resample import resample

SIZE, HEIGHT, WIDTH = 64, 40, 56  # every crop is enlarged: no antialiasing, which kornia does differently
STRONG = ViewArguments(solarize_p=[0.3], grayscale_p=0.3, jitter=[0.8, 0.8, 0.8, 0.4])
PLAIN = torch.zeros(3), torch.ones(3)


def patches(count, height=HEIGHT, width=WIDTH):
    """Pieces of four real photographs, uint8 count x 3 x height x width."""
    pictures = [
        torch.from_numpy(p).permute(2, 0, 1) for p in (data.astronaut(), data.coffee(), data.cat(), data.rocket())
    ]
    draws = torch.Generator().manual_seed(0)

    def piece(picture):
        top, left = (
            int(torch.randint(whole - part + 1, (), generator=draws))
            for whole, part in zip(picture.shape[1:], (height, width), strict=True)
        )
        return picture[:, top : top + height, left : left + width]

    return torch.stack([piece(pictures[n % 4]) for n in range(count)])


def by_kornia(images, params, size):
    """Crop, flip, jitter, grayscale, blur and solarization by kornia's functions, each on all images, then chosen."""
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


def where(mask, yes, no):
    return torch.where(mask[:, None, None, None], yes, no)


@pytest.mark.parametrize("size", [64, 96])
def test_pixels_are_kornias_over_a_thousand_draws(size):
    images, views = patches(500), Views(STRONG, seed=size)
    drawn = views.sample(images)
    for share in (drawn.flip, drawn.grayscale, drawn.sigma > 0, drawn.solarize, drawn.jitter[:, 3] != 0):
        assert 100 < share.sum() < 450  # each operation is drawn, and left out
    ours, expected = render_fused(images, drawn, size, *PLAIN), by_kornia(images, drawn, size)
    assert (expected - by_kornia(images, drawn.take(torch.arange(500).roll(1)), size)).abs().mean() > 0.1
    assert (ours - expected).abs().max() < 2 / 255


def test_views_are_the_same_by_both_executors():
    images = patches(32, 150, 120)  # some crops shrink
    by_fused, by_kornia = (Views(ViewArguments(view_executor=name, solarize_p=[0.2])) for name in ("fused", "kornia"))
    (first, second), (other_first, other_second) = by_fused(images, 64), by_kornia(images, 64)
    tolerance = 2 / 255 / 0.224
    torch.testing.assert_close(first, other_first, atol=tolerance, rtol=0)
    torch.testing.assert_close(second, other_second, atol=tolerance, rtol=0)
    assert first.is_contiguous() and second.is_contiguous()


def test_many_views_at_once_are_those_of_one_after_the_other(monkeypatch):
    images, views = patches(10), Views(STRONG, seed=2)
    drawn = [views.sample(images) for _ in range(3)]
    one_by_one = torch.stack([views.render(images, params, 32) for params in drawn])
    for block in (1, 3 * 32**2 * 4, 2**30):  # one, four and all views at a time, a few and all images
        monkeypatch.setattr(fused_module, "BLOCK", block)
        monkeypatch.setattr(sys.modules[resample.__module__], "BLOCK", 10 * block)
        torch.testing.assert_close(views.render_all(images, drawn, 32), one_by_one, atol=1e-5, rtol=0)


def test_normalised_in_float32_under_autocast_and_nothing_given_is_written_over():
    images, views = patches(4), Views(STRONG, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2), seed=3)
    drawn = views.sample(images)
    before, given = images.clone(), [getattr(drawn, name).clone() for name in drawn.__dataclass_fields__]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        view = views.render(images, drawn, 32)
    assert view.dtype == torch.float32 and torch.equal(images, before)
    assert all(torch.equal(getattr(drawn, n), x) for n, x in zip(drawn.__dataclass_fields__, given, strict=True))
    expected = TF.normalize(render_fused(images, drawn, 32, *PLAIN), [0.1, 0.2, 0.3], [0.5, 0.25, 0.2])
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_solarized_after_the_blur_and_after_normalisation():
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    image[:, :, :, 20:] = 255
    whole = {"box": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "jitter": torch.tensor([[1.0, 1.0, 1.0, 0.0]])}
    no, yes = torch.tensor([False]), torch.tensor([True])
    params = ViewParams(**whole, flip=no, grayscale=no, sigma=torch.tensor([224 / 40]), solarize=yes)
    view = render_fused(image, params, 40, torch.full((3,), 0.5), torch.full((3,), 0.25))
    step = TF.gaussian_blur(image.float() / 255, [5, 5], [1.0, 1.0])[0, 0, 20]  # kernel of 5 at 40 px, sigma 1 px
    expected = (torch.where(step < 0.5, step, 1 - step) - 0.5) / 0.25
    torch.testing.assert_close(view[0, 0, 20], expected, atol=1e-5, rtol=0)
    assert expected.max() - expected.min() > 1  # the edge is neither black nor white


@pytest.mark.parametrize(("asked", "compiled"), [(None, False), (False, False), (True, True)])
def test_a_cpu_compiles_the_colours_where_asked(asked, compiled, monkeypatch):
    painted = []
    monkeypatch.setattr(
        fused_module, "compiled_colour", lambda: lambda view, *rest: painted.append(colour(view, *rest))
    )
    views, images = Views(ViewArguments(compile_views=asked, jitter_p=1.0)), patches(4)
    expected = Views(ViewArguments(jitter_p=1.0))(images, 32)
    assert all(torch.equal(view, other) for view, other in zip(views(images, 32), expected, strict=True))
    assert bool(painted) == compiled


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_colour_is_eager_colour():
    compiled = torch.compile(colour, dynamic=True, fullgraph=True)
    draws = torch.Generator().manual_seed(1)
    for count, size in ((6, 32), (4, 48)):
        view = torch.rand(count, 3, size, size, generator=draws)
        factors = [torch.rand(count, generator=draws) * 2 for _ in range(2)]
        hue, gray = torch.rand(count, generator=draws) - 0.5, (torch.arange(count) % 2).float()
        given = (*factors, hue, gray, torch.full((3, 1, 1), 0.4), torch.full((3, 1, 1), 0.2))
        torch.testing.assert_close(compiled(view.clone(), *given), colour(view.clone(), *given), atol=1e-4, rtol=0)
