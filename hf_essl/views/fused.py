"""The fused executor: crop, flip and resize as one resampling, all color operations as one function, then the blur.

Its pixels are those of kornia's operations, with the same parameters, in less time: it passes over the pixels as few
times as possible, and on a CPU it processes a few images at a time, which stay in its cache. With a random order of
the jitter, each of its operations runs on the images that have it next.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from hf_essl.views.params import (
    JITTER_ORDER,
    NEUTRAL_JITTER,
    REFERENCE_SIZE,
    ViewParams,
    apply_in_order_,
    apply_where_,
)
from hf_essl.views.resample import blocks, resample, sum_rows

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a gray value, as in kornia and torchvision


def render_fused(
    images: Tensor, params: ViewParams, size: int, mean: Tensor, std: Tensor, compiled: bool = False
) -> Tensor:
    """uint8 N x 3 x H x W and the parameters of M views to normalized float32 M x 3 x size x size.

    Args:
        params: view v is of image v mod N; RandAugment's operations are ignored.
        mean, std: 3 each, of pixels in [0, 1].
        compiled: use `compiled_color`; a random order of the jitter runs eagerly.
    """
    recolor: Callable[..., Tensor] = compiled_color() if compiled else color
    fixed_order = bool((params.order == JITTER_ORDER).all())  # brightness is a gain, and the rest is one function
    jitter = params.jitter if fixed_order else NEUTRAL_JITTER.expand_as(params.jitter)
    views = resample(images, params.box, params.flip, size, gain=jitter[:, 0])
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    changes_color = bool(params.grayscale.any() or (jitter != NEUTRAL_JITTER).any())
    factors = torch.cat([jitter[:, 1:], params.grayscale[:, None]], dim=1)
    factors = factors.to(images.device, non_blocking=True)
    order, ordered_factors = params.jitter_in_order()
    for block in blocks(len(views), views[0].numel(), images.device):
        view = views[block]
        if not fixed_order:
            apply_in_order_(view.clamp_(0, 1), order[block], ordered_factors[block], JITTER)
            finish_(view, factors[block, 3], mean, std)
        elif changes_color:
            recolor(view, *factors[block].unbind(dim=1), mean, std)
        else:
            view.clamp_(0, 1).sub_(mean).div_(std)
        sigma = params.sigma[block]  # the weights of a blur sum to 1, so it may follow the normalization
        apply_where_(view, sigma > 0, sigma * (size / REFERENCE_SIZE), gaussian_blur)
        apply_where_(view, params.solarize[block], None, partial(solarize, mean=mean, std=std))
    return views


@cache
def compiled_color() -> Callable[..., Tensor]:
    """`color` as one loop over the pixels, equal up to rounding; compiling takes some 20 s, or 4 s from a cache."""
    return torch.compile(color, dynamic=True)


def color(
    view: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, gray: Tensor, mean: Tensor, std: Tensor
) -> Tensor:
    """Jitter except brightness, grayscale and normalization, in place: N x 3 x r x r.

    Args:
        contrast, saturation: N, factors.
        hue: N, in turns of the color circle.
        gray: N, 1 for a grayscale image, otherwise 0.
        mean, std: 3 x 1 x 1.
    """
    view = adjust_contrast_(view.clamp_(0, 1), contrast)
    view = adjust_saturation_(view, saturation)
    return finish_(shift_hue_(view, hue), gray, mean, std)


def finish_(view: Tensor, gray: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Grayscale and normalization, in place."""
    return view.lerp_(luma(view), gray[:, None, None, None]).sub_(mean).div_(std)


def adjust_brightness_(view: Tensor, factor: Tensor) -> Tensor:
    return view.mul_(factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast_(view: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    level = luma(view.mean(dim=(2, 3), keepdim=True))
    return view.mul_(factor).add_(level * (1 - factor)).clamp_(0, 1)


def adjust_saturation_(view: Tensor, factor: Tensor) -> Tensor:
    return view.lerp_(luma(view), 1 - factor[:, None, None, None]).clamp_(0, 1)


def shift_hue_(view: Tensor, shift: Tensor) -> Tensor:
    """Shifts the hue of HSV in place: N x 3 x r x r in [0, 1] and N in turns.

    Value v and chroma c stay, so each channel follows from them and the shifted hue in one step:
    v - c max(0, min(1, 2 - 6 d)), with d the distance, in turns, of the hue from the opposite of the channel's own.
    Conditions are `lerp` with weights of 0 and 1, which is exact: `torch.where` takes twenty times as long on a CPU.
    """
    red, green, blue = view.split(1, dim=1)  # N x 1 x r x r
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    not_red, not_green = (value - red).sign_(), (value - green).sign_()  # 0 for the highest channel, else 1
    in_green, in_blue = (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    turns = (green - blue).lerp_(in_green.lerp_(in_blue, not_green), not_red)
    turns = turns.div_((6 * chroma).clamp_(min=1e-12)).add_(shift[:, None, None, None])
    opposite = 1 / 2 + torch.arange(3, device=view.device)[:, None, None] / 3  # of red, green and blue
    distance = turns - opposite  # N x 3 x r x r
    distance = distance.sub_(distance.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.sub(value, distance.mul_(chroma), out=view)


JITTER = (adjust_brightness_, adjust_contrast_, adjust_saturation_, shift_hue_)  # the columns of `ViewParams.jitter`


def luma(view: Tensor) -> Tensor:
    """Gray values: N x 3 x H x W to N x 1 x H x W."""
    red, green, blue = view.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def solarize(view: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Inverts normalized pixels above one half: N x 3 x r x r, mean and std 3 x 1 x 1."""
    white = (1 - 2 * mean) / std  # the inverse 1 - x of a pixel is white - x after normalization
    return torch.minimum(view, white - view)


def gaussian_blur(view: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of N x 3 x r x r with sigma in pixels, N, and reflected borders; the kernel is as in SimCLR."""
    size = view.shape[-1]
    reach = round(size / 20)
    offset = torch.arange(-reach, reach + 1, dtype=torch.int32, device=view.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)  # N x taps
    weights = (kernel / kernel.sum(dim=1, keepdim=True))[:, None].expand(-1, size, -1)
    source = torch.arange(size, dtype=torch.int32, device=view.device)[:, None] + offset
    source = (size - 1 - (size - 1 - source.abs()).abs()).expand(len(view), -1, -1)
    down = sum_rows(view, source, weights)
    return sum_rows(down.transpose(2, 3).contiguous(), source, weights).transpose(2, 3)
