"""Crops as boxes in fractions of the whole image, which are the same on the squashed canvas."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from hf_essl.config import ViewArguments

TRIES = 10  # as in torchvision
SIMULATED = 20_000  # crops, for a share within half a percent
INTERPOLATION: Final = "bilinear"  # timm's name for the antialiased filter of `resample`


def sample_boxes(aspect: Tensor, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Samples one box per image as torchvision's RandomResizedCrop does, from torch's global generator.

    Area and shape are those of the crop in the image itself: the share of the area is uniform, the logarithm of width
    / height is uniform, and a box that does not fit is sampled again. After ten tries it is the largest centered box
    whose width / height is in the range. Unlike torchvision's, sides are not rounded to whole pixels.

    Args:
        aspect: N, width / height of the images.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width / height of a box.

    Returns left, top, width and height as fractions of the image, N x 4.
    """
    count = len(aspect)
    share = torch.empty(count, TRIES).uniform_(*scale)
    shape = torch.empty(count, TRIES).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    relative = shape / aspect[:, None]  # the box's width / height over the image's
    sides = torch.stack([(share * relative).sqrt(), (share / relative).sqrt()], dim=2)  # N x tries x 2
    fits = (sides <= 1).all(dim=2)
    first = fits.int().argmax(dim=1)
    side = sides[torch.arange(count), first]
    corner = torch.rand(count, 2) * (1 - side)
    largest = _largest(aspect, ratio)
    side, corner = (
        torch.where(fits.any(dim=1, keepdim=True), found, fallback)
        for found, fallback in ((side, largest), (corner, (1 - largest) / 2))
    )
    return torch.cat([corner, side], dim=1)


def enlarged_share(aspect: Tensor, pixels: Tensor, size: int, scale: Sequence[float], ratio: Sequence[float]) -> float:
    """Share of random crops that have fewer pixels than the view, so that rendering enlarges them.

    Args:
        aspect: N, width / height of the images; one crop of each is sampled from torch's global generator.
        pixels: N x 2, width and height of the images, or of their canvas.
        size: side of the views in pixels.
        scale, ratio: as in `sample_boxes`.
    """
    sides = sample_boxes(aspect, scale, ratio)[:, 2:] * pixels
    return (sides.prod(dim=1) < size**2).float().mean().item()


def describe_crops(args: ViewArguments, image_size: int, aspect: Tensor | None = None) -> str:
    """How many of a recipe's crops are enlarged at the full resolution, in one line.

    Args:
        aspect: width / height of the training images; by default they are squares.
    """
    aspect = torch.ones(1) if aspect is None else aspect
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        aspect = aspect[torch.randint(len(aspect), (SIMULATED,))]
        pixels = torch.full((SIMULATED, 2), float(image_size))
        share = enlarged_share(aspect, pixels, args.resolution, args.crop_scale, args.crop_ratio)
    return f"{share:.0%} of the crops have fewer pixels than the {args.resolution} px view (image_size {image_size})"


def center_boxes(aspect: Tensor, crop_pct: float, resolution: int | None = None) -> Tensor:
    """The center square of each image: B x 4, left, top, width and height as fractions of the image.

    Fractions do not change if the image is squashed onto a square canvas, so `resample` also undoes the squash.

    Args:
        aspect: B, width / height of the whole images.
        crop_pct: side of the square, as a share of the short side, in (0, 1].
        resolution: side of the crop in pixels. With it, the box has whole pixels of the resized image, as those of
            torchvision's `Resize(resolution / crop_pct)` and `CenterCrop(resolution)`: it may lie half a pixel off
            the center.
    """
    aspect = aspect.double()
    sides = torch.stack([aspect, 1 / aspect], dim=1).clamp(min=1)  # width and height in units of the short side
    crop = crop_pct
    if resolution is not None:  # in pixels of the resized image; the constant covers the rounding of a float32 aspect
        sides, crop = (math.floor(resolution / crop_pct) * sides + 1e-3).floor(), resolution
    margin = (sides - crop) / 2
    if resolution is not None:
        margin = margin.round()  # half to even, as Python rounds
    return torch.cat([margin / sides, crop / sides], dim=1).float()


def canvas_size(resolution: int) -> int:
    """Side of the square canvas on which a squashed image keeps enough detail for a center crop of `resolution`."""
    return 2 * resolution


def describe_center_crop(resolution: int, crop_pct: float) -> str:
    """An evaluation crop in words, for reports and cards."""
    part = "whole center square" if crop_pct == 1 else f"center crop of {crop_pct:g} of the short side"
    return f"{resolution} px, {part}"


def _largest(aspect: Tensor, ratio: Sequence[float]) -> Tensor:
    """Width and height, as fractions, of the largest boxes whose own width / height is within `ratio`: N x 2."""
    relative = aspect.clamp(*ratio) / aspect
    return torch.stack([relative.clamp(max=1), (1 / relative).clamp(max=1)], dim=1)
