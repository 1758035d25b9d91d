"""Crop, mirror and resize at once: on either axis, a line of a view is a weighted sum of a few lines of its image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**19
"""Values that a CPU holds at a time between the two axes, at a measured size: they stay in its cache. A GPU takes the
whole batch."""


def resample(images: Tensor, box: Tensor, flip: Tensor, size: int, gain: Tensor | None = None) -> Tensor:
    """Crops, mirrors and resizes: uint8 N x C x H x W to float32 M x C x size x size, M a multiple of N.

    The weights are those of an antialiased bilinear resize of the crop, so a view rendered small is the same view seen
    from afar; no loop over the images and no wait for the device.

    Args:
        box: M x 4, on the host: left, top, width, height as fractions of the image; view v is one of image v mod N.
        flip: M, bool, on the host.
        size: side of the views in pixels.
        gain: M, on the host: what the pixels, in [0, 1], are multiplied by.
    """
    count, channels, height, width = images.shape
    gain = torch.ones(len(box)) if gain is None else gain
    widest, highest = (box[:, 2:].amax(dim=0) * torch.tensor([width, height])).tolist()
    drawn = torch.cat([box, flip[:, None], gain[:, None] / 255], dim=1).to(images.device, non_blocking=True)
    left, top, wide, high, mirrored, gain = drawn.unbind(dim=1)
    rows, row_weights = resize_weights(top * height, high * height, height, size, taps(highest, size))
    row_weights = row_weights * gain[:, None, None]
    columns, column_weights = resize_weights(left * width, wide * width, width, size, taps(widest, size), mirrored > 0)
    views = torch.empty(len(box) // count, count, channels, size, size, device=images.device)
    held = len(views) * channels * size * max(size, width)  # for an image
    step = max(1, BLOCK // held) if images.device.type == "cpu" else count
    for start in range(0, count, step):
        block = slice(start, start + step)
        down, down_weights, across, across_weights = (
            x.unflatten(0, (-1, count))[:, block].flatten(0, 1) for x in (rows, row_weights, columns, column_weights)
        )
        low = sum_rows(images[block].float(), down, down_weights)  # m · block x C x size x W
        turned = sum_rows(low.transpose(2, 3).contiguous(), across, across_weights)
        views[:, block] = turned.transpose(2, 3).unflatten(0, (len(views), -1))
    return views.flatten(0, 1)


def sum_rows(images: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: N x C x H x W to M x C x size x W, view v from image v mod N.

    An embedding bag reads the rows where they lie: no copy for each weight, and no product with the zeros of a matrix.

    Args:
        index: M x size x taps, int32: the rows, of each image alone.
        weights: M x size x taps.
    """
    count, channels, height, width = images.shape
    views, size, terms = weights.shape
    first = height * torch.arange(count * channels, dtype=torch.int32, device=images.device).view(count, channels)
    rows = first.repeat(views // count, 1)[:, :, None, None] + index[:, None]  # M x C x size x taps
    bags = F.embedding_bag(
        rows.view(-1, terms),
        images.view(-1, width),
        per_sample_weights=weights[:, None].expand_as(rows).reshape(-1, terms),
        mode="sum",
    )
    return bags.view(views, channels, size, width)


def taps(longest: float, size: int) -> int:
    """How many pixels the filter of `resize_weights` sees at most, for an interval of `longest` pixels."""
    return int(2 * max(1.0, longest / size)) + 1


def resize_weights(
    start: Tensor, length: Tensor, pixels: int, size: int, terms: int, flip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pixels and weights that resample an interval of `pixels` to `size` samples by a triangle filter.

    The filter widens with the shrinkage (antialiasing), sees nothing outside the interval, and its weights sum to 1.

    Args:
        start, length: N, the interval in pixels.
        terms: pixels a sample, `taps` of the longest interval.
        flip: N, bool: samples in reverse order.

    Returns:
        The pixels, int32, and their weights: N x size x terms each.
    """
    start, end, step = (x[:, None, None] for x in (start, start + length, length / size))
    reach = step.clamp(min=1)  # half the width of the filter
    sample = torch.arange(size, device=start.device)[None, :, None]
    if flip is not None:
        sample = torch.where(flip[:, None, None], size - 1 - sample, sample)
    center = start + (sample + 0.5) * step
    pixel = torch.ceil(center - reach - 0.5) + torch.arange(terms, device=start.device)  # N x size x terms
    middle = pixel + 0.5
    weights = (1 - (middle - center).abs() / reach).clamp_(min=0) * ((middle > start) & (middle < end))
    return pixel.clamp_(0, pixels - 1).int(), weights / weights.sum(dim=-1, keepdim=True)
