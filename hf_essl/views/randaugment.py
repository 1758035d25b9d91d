"""RandAugment (Cubuk et al. 2020): a few random operations an image, all at one magnitude from 0 to 30.

The fifteen operations and the ends of their ranges are those of `kornia.augmentation.auto.RandAugment`. Three things
differ from kornia's policy:

- Each image draws its own operations; kornia draws them once a batch.
- Every operation grows with the magnitude from none at 0, as in torchvision's and timm's "increasing" policies. In
  kornia and in the first publication the enhancements run from 0.1 to 1.9, so that the middle changes nothing, and
  solarization is strongest at 0: no knob for a curriculum.
- Brightness, contrast and color are PIL's, hence the publication's; kornia's policy adds brightness, multiplies by
  the contrast and scales the saturation of HSV. So is solarize_add, which leaves bright pixels alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    equalize,
    invert,
    normalize_min_max,
    posterize,
    sharpness,
    solarize,
)
from kornia.geometry import get_shear_matrix2d, rotate, translate, warp_affine
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.config.views import MAX_RANDAUGMENT
from hf_essl.views.params import REFERENCE_SIZE
from hf_essl.views.where import apply_where


def draw_operations(count: int, operations: int, magnitude: float) -> tuple[Tensor, Tensor]:
    """Draws operations and their strengths for `count` images from torch's global generator.

    Args:
        operations: how many an image, n; they are distinct, as in kornia, where the publication may repeat one.
        magnitude: strength of all of them, 0 to `MAX_RANDAUGMENT`.

    Returns:
        The positions in `OPERATIONS`, N x n, in the order of application, and the strengths, N x n: the magnitude as a
        share of `MAX_RANDAUGMENT`, with a random sign.

    Raises:
        ValueError: where the magnitude is off the scale.
    """
    if not 0 <= magnitude <= MAX_RANDAUGMENT:
        raise ValueError(f"magnitude is {magnitude}; RandAugment's scale is 0 to {MAX_RANDAUGMENT:g}")
    drawn = torch.rand(count, len(OPERATIONS)).argsort(dim=1)[:, :operations]
    signs = 2 * torch.randint(2, drawn.shape) - 1
    return drawn, signs * (magnitude / MAX_RANDAUGMENT)


def augment(view: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Applies each image's operations in their order: float32 N x 3 x r x r in [0, 1], to the same.

    A view rendered at another size is the same picture, but for auto_contrast and equalize, which see the extremes and
    the histogram of the pixels that there are: 0.01 to 0.05 apart in the mean, and equalize's whole steps show below
    some 50 px. What leaves the view is black.

    Args:
        operations: N x n, positions in `OPERATIONS`, on the host.
        strengths: N x n in [-1, 1], on the host; operations without direction take the absolute value, and
            auto_contrast, equalize and invert have no strength.
    """
    for drawn, strength in zip(operations.unbind(dim=1), strengths.unbind(dim=1), strict=True):
        for position, operation in enumerate(OPERATIONS.values()):
            view = apply_where(view, drawn == position, strength, operation)
    return view


def _posterize(view: Tensor, strength: Tensor) -> Tensor:
    """Keeps 8 down to 4 bits; the first is lost at any strength above 0, as in kornia."""
    return posterize(view, (8 - 4 * strength.abs()).long())


def _solarize(view: Tensor, strength: Tensor) -> Tensor:
    """Inverts from a level on, of 0 to 255, that falls from 256, where white stays white, to 0.

    The threshold lies half a level below it, so that rounding decides nothing.
    """
    return solarize(view, (256 * (1 - strength.abs()) - 0.5) / 255)


def _solarize_add(view: Tensor, strength: Tensor) -> Tensor:
    """Brightens the pixels below one half by up to 0.43, 110 of 255."""
    added = (view + 0.43 * strength.abs()[:, None, None, None]).clamp(max=1)
    return torch.where(view < 0.5, added, view)


def _sharpness(view: Tensor, strength: Tensor) -> Tensor:
    """PIL's sharpness at 224 px, and about the same picture at any other size.

    A pixel of a small view is wider in the picture, and what the kernel of 3 pixels removes grows with its square.
    """
    return sharpness(view, 1 + 0.9 * strength * (view.shape[-1] / REFERENCE_SIZE) ** 2)


def _rotate(view: Tensor, strength: Tensor) -> Tensor:
    return rotate(view, 30 * strength)  # degrees


def _shear(view: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Shears about the center by up to 54 degrees, kornia's reading of the publication's 0.3 (17 degrees)."""
    size = view.shape[-1]
    degree = torch.pi / 180
    matrix = get_shear_matrix2d(view.new_full((len(view), 2), (size - 1) / 2), 54 * degree * x, 54 * degree * y)
    return warp_affine(view, matrix[:, :2], (size, size))


def _translate(view: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Moves by up to a tenth of the side, as kornia does; torchvision's and timm's policies reach 0.45."""
    return translate(view, torch.stack([x, y], dim=1) * (0.1 * view.shape[-1]))


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto_contrast": lambda view, _: normalize_min_max(view),
    "equalize": lambda view, _: equalize(view),
    "invert": lambda view, _: invert(view),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": lambda view, strength: adjust_saturation_with_gray_subtraction(view, 1 + 0.9 * strength),
    "contrast": lambda view, strength: adjust_contrast_with_mean_subtraction(view, 1 + 0.9 * strength),
    "brightness": lambda view, strength: adjust_brightness_accumulative(view, 1 + 0.9 * strength),
    "sharpness": _sharpness,
    "shear_x": lambda view, strength: _shear(view, strength, torch.zeros_like(strength)),
    "shear_y": lambda view, strength: _shear(view, torch.zeros_like(strength), strength),
    "translate_x": lambda view, strength: _translate(view, strength, torch.zeros_like(strength)),
    "translate_y": lambda view, strength: _translate(view, torch.zeros_like(strength), strength),
}
"""By kornia's names and in its order: from a view, N x 3 x r x r in [0, 1], and strengths, N, to the view changed."""


def check_operations(args: ViewArguments) -> None:
    """Raises ValueError for more random operations per image than there are."""
    if args.randaugment_ops > len(OPERATIONS):
        raise ValueError(
            f"randaugment_ops is {args.randaugment_ops}; RandAugment has {len(OPERATIONS)}, use 1 to {len(OPERATIONS)}"
        )
