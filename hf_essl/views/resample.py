"""Crop, flip and resize at once: on either axis, a line of a view is a weighted sum of a few lines of its image."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**19  # values that a CPU processes at a time, at a measured optimum: temporaries stay in its cache


def blocks(count: int, values: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` items of `values` numbers each: `BLOCK` numbers at a time on a CPU, one slice on a GPU."""
    step = max(1, BLOCK // values) if device.type == "cpu" else count
    return (slice(start, start + step) for start in range(0, count, step))


def resample(images: Tensor, box: Tensor, flip: Tensor, size: int, gain: Tensor | None = None) -> Tensor:
    """Crops, flips and resizes: uint8 N x C x H x W to float32 M x C x size x size, M a multiple of N.

    The weights are those of an antialiased bilinear resize of the crop, so a view rendered small looks like the large
    one, downsampled. There is no loop over images, and a GPU is never waited for.

    Args:
        box: M x 4, on the host: left, top, width, height as fractions of the image; view v is of image v mod N.
        flip: M, bool, on the host.
        size: side of the views in pixels.
        gain: M, on the host: a factor for the pixels, which are in [0, 1]; by default 1.
    """
    count, channels, height, width = images.shape
    gain = torch.ones(len(box)) if gain is None else gain
    widest, highest = (box[:, 2:].amax(dim=0) * torch.tensor([width, height])).tolist()
    params = torch.cat([box, flip[:, None], gain[:, None] / 255], dim=1).to(images.device, non_blocking=True)
    left, top, wide, high, flipped, gain = params.unbind(dim=1)
    rows, row_weights = resize_weights(top * height, high * height, height, size, taps(highest, size))
    row_weights = row_weights * gain[:, None, None]
    columns, column_weights = resize_weights(left * width, wide * width, width, size, taps(widest, size), flipped > 0)
    views = torch.empty(len(box) // count, count, channels, size, size, device=images.device)
    for block in blocks(count, len(views) * channels * size * max(size, width), images.device):
        down, down_weights, across, across_weights = (
            x.unflatten(0, (-1, count))[:, block].flatten(0, 1) for x in (rows, row_weights, columns, column_weights)
        )
        pixels = images[block].to(torch.float32, memory_format=torch.contiguous_format)  # also if permuted
        low = sum_rows(pixels, down, down_weights)  # m · block x C x size x W
        turned = sum_rows(low.transpose(2, 3).contiguous(), across, across_weights)
        views[:, block] = turned.transpose(2, 3).unflatten(0, (len(views), -1))
    return views.flatten(0, 1)


def sum_rows(images: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: N x C x H x W to M x C x size x W, view v from image v mod N.

    An embedding bag reads the rows in place, without a copy per weight or a product with a mostly zero matrix.

    Args:
        index: M x size x taps, int32: the rows, counted within each image.
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
    """The largest number of pixels under the filter of `resize_weights`, for intervals of up to `longest` pixels."""
    return int(2 * max(1.0, longest / size)) + 1


def resize_weights(
    start: Tensor, length: Tensor, pixels: int, size: int, terms: int, flip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pixels and weights that resample an interval of a line of `pixels` to `size` samples with a triangle filter.

    The filter widens as the interval shrinks (antialiasing) and is cut off at its ends; weights sum to 1. An interval
    of up to one pixel takes the pixel that its middle lies in.

    Args:
        start, length: N, the interval in pixels.
        terms: pixels per sample, `taps` of the longest interval.
        flip: N, bool: reverses the samples.

    Returns the pixels, int32, and their weights: N x size x terms each.
    """
    narrow = length <= 1  # as of a very long image on its canvas: it may lie between the centers of two pixels
    start, length = torch.where(narrow, (start + length / 2).floor(), start), length.clamp(min=1)
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
