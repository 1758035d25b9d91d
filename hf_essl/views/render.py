"""Renders view parameters to pixels at any size: crop, flip and resize at once, then SimCLR's chain or RandAugment."""

from __future__ import annotations

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    solarize,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor

from hf_essl.views.params import NEUTRAL_JITTER, REFERENCE_SIZE, ViewParams
from hf_essl.views.randaugment import augment
from hf_essl.views.where import apply_where


def render_view(images: Tensor, params: ViewParams, size: int) -> Tensor:
    """Renders one view of each image: uint8 N x 3 x H x W to float32 N x 3 x size x size in [0, 1].

    The order is SimCLR's: crop and flip, jitter (brightness, contrast, saturation, hue), grayscale, blur, solarize;
    then RandAugment's operations. The parameters of a view hold either chain, and the other changes nothing.
    """
    view = crop_flip_resize(images, params.box, params.flip, size)
    view = apply_where(view, (params.jitter != NEUTRAL_JITTER).any(dim=1), params.jitter, color_jitter)
    view = apply_where(view, params.grayscale, None, lambda x: rgb_to_grayscale(x).expand(-1, 3, -1, -1))
    view = apply_where(view, params.sigma > 0, params.sigma * (size / REFERENCE_SIZE), gaussian_blur)
    view = apply_where(view, params.solarize, None, lambda x: solarize(x, 0.5))
    return augment(view, params.operations, params.strengths)


def crop_flip_resize(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crops, mirrors and resizes each image by two small matrices: rows · image · columnsᵀ.

    The weights are those of an antialiased bilinear resize of the crop, so a view rendered small is the same view seen
    from afar; no loop over the images and no wait for the device.

    Args:
        images: uint8, N x 3 x H x W.
        box: N x 4, left, top, width, height as fractions of the image.
        flip: N, bool.
        size: side of the views in pixels.
    """
    count, channels, height, width = images.shape
    box, flip = (x.to(images.device, non_blocking=True) for x in (box, flip))
    rows = resize_weights(box[:, 1] * height, box[:, 3] * height, height, size) / 255
    columns = resize_weights(box[:, 0] * width, box[:, 2] * width, width, size, flip)
    # both as plain batched products: a broadcast matmul would copy the larger operand for each channel
    narrow = torch.bmm(images.float().view(count, channels * height, width), columns.transpose(1, 2))
    view = torch.bmm(rows.repeat_interleave(channels, dim=0), narrow.view(count * channels, height, size))
    return view.view(count, channels, size, size).clamp_(0, 1)


def resize_weights(start: Tensor, length: Tensor, pixels: int, size: int, flip: Tensor | None = None) -> Tensor:
    """Weights that resample an interval of `pixels` to `size` samples by a triangle filter: N x size x pixels.

    The filter widens with the shrinkage (antialiasing), sees nothing outside the interval, and sums to 1.

    Args:
        start, length: N, the interval in pixels.
        flip: N, bool: samples in reverse order.
    """
    step = (length / size)[:, None, None]
    index = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        index = torch.where(flip[:, None, None], size - 1 - index, index)
    center = start[:, None, None] + (index + 0.5) * step
    pixel = torch.arange(pixels, device=start.device, dtype=torch.float32)[None, None] + 0.5
    weights = (1 - (pixel - center).abs() / step.clamp(min=1)).clamp_(min=0)
    inside = (pixel > start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(dim=-1, keepdim=True)


def color_jitter(view: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in this order, as torchvision defines them: N x 3 x r x r and N x 4."""
    brightness, contrast, saturation, hue = factors.unbind(dim=1)
    view = adjust_brightness_accumulative(view, brightness)
    view = adjust_contrast_with_mean_subtraction(view, contrast)
    view = adjust_saturation_with_gray_subtraction(view, saturation)
    return shift_hue(view, hue)


def shift_hue(view: Tensor, turns: Tensor) -> Tensor:
    """Shifts the hue in HSV: N x 3 x r x r and N, in turns of the colour circle.

    Value and chroma stay, so each channel follows from them and the shifted hue in one step, without a way through
    HSV and back: v - c max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = view.unbind(dim=1)
    value = view.amax(dim=1)
    chroma = value - view.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # sixths of a turn, N x r x r
    hue += 6 * turns[:, None, None]
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(hue + n, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def gaussian_blur(view: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur, N x 3 x r x r and sigma in pixels, N; the kernel spans a tenth of the side (SimCLR)."""
    kernel = 2 * round(view.shape[-1] / 20) + 1
    return gaussian_blur2d(view, (kernel, kernel), sigma[:, None].expand(-1, 2))
