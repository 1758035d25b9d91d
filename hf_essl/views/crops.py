"""Crops as boxes in fractions of the whole image, which are the same on the squashed canvas."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_essl.config import ViewArguments

TRIES = 10  # as in torchvision
SIMULATED = 20_000  # crops, for a share within half a percent


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


def _largest(aspect: Tensor, ratio: Sequence[float]) -> Tensor:
    """Width and height, as fractions, of the largest boxes whose own width / height is within `ratio`: N x 2."""
    relative = aspect.clamp(*ratio) / aspect
    return torch.stack([relative.clamp(max=1), (1 / relative).clamp(max=1)], dim=1)
