"""Augmented views next to their originals, as one picture."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from hf_essl.config import ViewArguments
from hf_essl.views.sampler import LOCAL
from hf_essl.views.views import Views

PADDING = 4  # pixels between tiles
DROPPED = 0.5  # brightness of a dropped patch


def tile_views(
    images: Tensor,
    args: ViewArguments,
    resolution: int,
    magnitude: float,
    columns: int = 6,
    seed: int = 0,
    aspect: Tensor | None = None,
    tokens: float = 1.0,
    patches: int | None = None,
) -> np.ndarray:
    """Tiles augmented views at one resolution and magnitude next to their originals: uint8 H x W x 3.

    Args:
        images: uint8 N x 3 x S x S, one row each.
        columns: views of each image, alternating between the first and the second kind; local views follow them.
        seed: of the views, the same as in the first plan of `HardAugment`; torch's global random state is not used.
        aspect: N, width / height of the whole images; by default they are squares.
        tokens: share of the patch tokens that a ViT keeps; the patches of the others are gray.
        patches: of a view, all of them; None for a network without patches.
    """
    views = Views(args, mean=(0, 0, 0), std=(1, 1, 1), seed=seed)
    views.resolution, views.magnitude = resolution, magnitude
    aspect = torch.ones(len(images)) if aspect is None else aspect
    kinds = [*(column % 2 for column in range(columns)), *[LOCAL] * args.local_views]
    params = views.sample_all(images, kinds, aspect)
    pairs, local = params[:columns], params[columns:]
    rendered = views.render_all(images, pairs)
    if patches is not None and (kept := views.kept_tokens(pairs, patches, images.device, tokens)) is not None:
        rendered = without_patches(rendered, kept.transpose(0, 1), patches)
    shown = [*rendered, *(views.render_all(images, local, views.local_resolution) if local else ())]
    side = tile_side(images)
    tiles = [F.interpolate(view, size=(side, side), mode="nearest") for view in shown]
    tiles.insert(0, torch.stack([unsquashed(*image, side) for image in zip(images, aspect.tolist(), strict=True)]))
    grid = make_grid(torch.stack(tiles, dim=1).flatten(0, 1), nrow=len(tiles), padding=PADDING, pad_value=1)
    return (grid.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def without_patches(views: Tensor, kept: Tensor, patches: int) -> Tensor:
    """Views in gray where a patch was dropped: m x N x 3 x r x r, the kept ones m x N x K of a square of `patches`."""
    shown = torch.zeros(*kept.shape[:2], patches).scatter_(2, kept, 1.0)
    side = math.isqrt(patches)
    mask = F.interpolate(shown.unflatten(2, (side, side)), size=views.shape[-2:], mode="nearest")[:, :, None]
    return views * mask + DROPPED * (1 - mask)


def tile_side(images: Tensor) -> int:
    """Side in pixels of a tile of N x 3 x S x S images; small images are enlarged."""
    return max(images.shape[-1], 96)


def unsquashed(canvas: Tensor, aspect: float, side: int) -> Tensor:
    """The whole image of a canvas in its own aspect ratio, between white bars: uint8 to float32 3 x side x side."""
    width, height = round(side * min(1.0, aspect)), round(side * min(1.0, 1 / aspect))
    mode: dict = {"mode": "bilinear", "antialias": True} if aspect != 1 else {"mode": "nearest"}
    image = F.interpolate(canvas[None].float() / 255, size=(max(height, 1), max(width, 1)), **mode)[0]
    left, top = (side - image.shape[2]) // 2, (side - image.shape[1]) // 2
    return F.pad(image, (left, side - image.shape[2] - left, top, side - image.shape[1] - top), value=1.0)
