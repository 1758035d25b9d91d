"""The fused executor: crop, flip and resize as one resampling, one function of colour, a blur where it was drawn.

It makes the pixels of kornia's operations in SimCLR's order, from the same parameters, in less time: each step goes
over the pixels as few times as it can, and a CPU makes a few images at a time, whose temporaries stay in its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from hf_essl.views.params import NEUTRAL_JITTER, REFERENCE_SIZE, ViewParams
from hf_essl.views.resample import resample, sum_rows
from hf_essl.views.where import apply_where_

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray value, as in kornia and torchvision."""

BLOCK = 2**19
"""Values of views that a CPU colours at a time, at a measured size: temporaries stay in its cache and in memory that
is handed out again. A GPU takes the whole batch."""


def render_fused(
    images: Tensor, params: ViewParams, size: int, mean: Tensor, std: Tensor, compiled: bool = False
) -> Tensor:
    """uint8 N x 3 x H x W and the parameters of M views to normalised float32 M x 3 x size x size.

    Args:
        params: view v is one of image v mod N.
        mean, std: 3 each, of pixels in [0, 1].
        compiled: colours by `compiled_colour`.
    """
    paint: Callable[..., Tensor] = compiled_colour() if compiled else colour
    views = resample(images, params.box, params.flip, size, gain=params.jitter[:, 0])
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    coloured = bool(params.grayscale.any() or (params.jitter != NEUTRAL_JITTER).any())
    drawn = torch.cat([params.jitter[:, 1:], params.grayscale[:, None]], dim=1)
    drawn = drawn.to(images.device, non_blocking=True)
    step = max(1, BLOCK // views[0].numel()) if images.device.type == "cpu" else len(views)
    for start in range(0, len(views), step):
        block = slice(start, start + step)
        view = views[block]
        if coloured:
            paint(view, *drawn[block].unbind(dim=1), mean, std)
        else:
            view.clamp_(0, 1).sub_(mean).div_(std)
        sigma = params.sigma[block]  # the weights of a blur sum to 1, so it may follow the normalisation
        apply_where_(view, sigma > 0, sigma * (size / REFERENCE_SIZE), gaussian_blur)
        apply_where_(view, params.solarize[block], None, partial(solarize, mean=mean, std=std))
    return views


@cache
def compiled_colour() -> Callable[..., Tensor]:
    """`colour` as one loop over the pixels, the same up to rounding; compiling takes some 20 s, from a cache 4 s."""
    return torch.compile(colour, dynamic=True)


def colour(
    view: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, gray: Tensor, mean: Tensor, std: Tensor
) -> Tensor:
    """Jitter after brightness, grayscale and normalisation: N x 3 x r x r, which is written over, to the same shape.

    Args:
        contrast, saturation: N, factors.
        hue: N, turns of the colour circle.
        gray: N, 1 for an image that loses its colour, 0 for one that keeps it.
        mean, std: 3 x 1 x 1.
    """
    contrast, saturation, hue, gray = (x[:, None, None, None] for x in (contrast, saturation, hue, gray))
    view = view.clamp_(0, 1)
    level = luma(view.mean(dim=(2, 3), keepdim=True))
    view = view.mul_(contrast).add_(level * (1 - contrast)).clamp_(0, 1)
    view = view.lerp_(luma(view), 1 - saturation).clamp_(0, 1)
    view = shift_hue_(view, hue)
    return view.lerp_(luma(view), gray).sub_(mean).div_(std)


def shift_hue_(view: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of HSV, in place: N x 3 x r x r in [0, 1] and N x 1 x 1 x 1 in turns.

    Value and chroma stay, so each channel follows from them and the shifted hue in one step:
    v - c max(0, min(1, 2 - 6 d)), where d is how far, in turns, the hue lies from the opposite of the channel's own.
    Choices by `lerp` with weights of 0 and 1, which are exact: `torch.where` takes twenty times as long on a CPU.
    """
    red, green, blue = view.split(1, dim=1)  # N x 1 x r x r
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    not_red, not_green = (value - red).sign_(), (value - green).sign_()  # 0 for the highest channel, else 1
    in_green, in_blue = (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    turns = (green - blue).lerp_(in_green.lerp_(in_blue, not_green), not_red)
    turns = turns.div_((6 * chroma).clamp_(min=1e-12)).add_(shift)
    opposite = 1 / 2 + torch.arange(3, device=view.device)[:, None, None] / 3  # of red, green and blue
    away = turns - opposite  # N x 3 x r x r
    away = away.sub_(away.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.sub(value, away.mul_(chroma), out=view)


def luma(view: Tensor) -> Tensor:
    """N x 3 x H x W to the gray values, N x 1 x H x W."""
    red, green, blue = view.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def solarize(view: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Inverts what lies above one half, of normalised pixels: N x 3 x r x r, mean and std 3 x 1 x 1."""
    white = (1 - 2 * mean) / std  # 1 - x in terms of the normalised x is this less x
    return torch.minimum(view, white - view)


def gaussian_blur(view: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of N x 3 x r x r, mirrored at the borders, with sigma in pixels, N.

    The kernel reaches a twentieth of the side to both sides (SimCLR).
    """
    size = view.shape[-1]
    reach = round(size / 20)
    offset = torch.arange(-reach, reach + 1, dtype=torch.int32, device=view.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)  # N x taps
    weights = (kernel / kernel.sum(dim=1, keepdim=True))[:, None].expand(-1, size, -1)
    source = torch.arange(size, dtype=torch.int32, device=view.device)[:, None] + offset
    source = (size - 1 - (size - 1 - source.abs()).abs()).expand(len(view), -1, -1)
    down = sum_rows(view, source, weights)
    return sum_rows(down.transpose(2, 3).contiguous(), source, weights).transpose(2, 3)
