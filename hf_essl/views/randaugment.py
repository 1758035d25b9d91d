"""RandAugment (Cubuk et al. 2020): a few random operations per image, all at one magnitude.

The operations and their ranges are those of `kornia.augmentation.auto.RandAugment`, with three differences:

- Each image samples its own operations; kornia samples them once per batch.
- Every operation grows with the magnitude from no change at 0, as in torchvision's and timm's "increasing" policies,
  so that a curriculum can raise it. In kornia and in the paper, enhancements run from 0.1 to 1.9 with no change in the
  middle, and solarization is strongest at 0.
- Brightness, contrast, color and solarize_add are PIL's, as in the paper.
"""

from collections.abc import Callable
from functools import partial

import torch
from kornia import enhance
from kornia.geometry import get_shear_matrix2d, rotate, translate, warp_affine
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.config.views import MAX_RANDAUGMENT
from hf_essl.views.params import REFERENCE_SIZE, apply_in_order_


def sample_operations(count: int, operations: int, magnitude: float) -> tuple[Tensor, Tensor]:
    """Samples operations and their strengths for `count` images from torch's global generator.

    Args:
        operations: n per image, distinct as in kornia; the paper may repeat one.
        magnitude: strength of all of them, 0 to `MAX_RANDAUGMENT`.

    Returns indices into `OPERATIONS`, N x n, in the order of application, and strengths, N x n: the magnitude as a
    share of `MAX_RANDAUGMENT`, with a random sign.
    Raises ValueError for a magnitude outside of the scale.
    """
    if not 0 <= magnitude <= MAX_RANDAUGMENT:
        raise ValueError(f"magnitude is {magnitude}; RandAugment's scale is 0 to {MAX_RANDAUGMENT:g}")
    sampled = torch.rand(count, len(OPERATIONS)).argsort(dim=1)[:, :operations]
    signs = 2 * torch.randint(2, sampled.shape) - 1
    return sampled, signs * (magnitude / MAX_RANDAUGMENT)


def augment_(view: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Applies each image's operations in their order, in place: float32 N x 3 x r x r in [0, 1].

    The result looks about the same at any resolution. auto_contrast and equalize differ by 0.01 to 0.05 in the mean,
    because they depend on the extremes and the histogram of the pixels. Regions from outside the view are black.

    Args:
        operations: N x n, indices into `OPERATIONS`, on the host.
        strengths: N x n in [-1, 1], on the host. Operations without a direction use the absolute value;
            auto_contrast, equalize and invert ignore it.
    """
    apply_in_order_(view, operations, strengths, list(OPERATIONS.values()))
    return view


def _posterize(view: Tensor, strength: Tensor) -> Tensor:
    """Keeps 8 down to 4 bits; any strength above 0 loses the first one, as in kornia."""
    return enhance.posterize(view, (8 - 4 * strength.abs()).long())


def _solarize(view: Tensor, strength: Tensor) -> Tensor:
    """Inverts pixels from a level on, of 0 to 255, that falls from 256 (none, not even white) to 0 (all).

    The threshold lies half a level below, so that rounding cannot change the result.
    """
    return enhance.solarize(view, (256 * (1 - strength.abs()) - 0.5) / 255)


def _solarize_add(view: Tensor, strength: Tensor) -> Tensor:
    """Brightens pixels below one half by up to 0.43, 110 of 255."""
    added = (view + 0.43 * strength.abs()[:, None, None, None]).clamp(max=1)
    return torch.where(view < 0.5, added, view)


def _enhance(adjust: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda view, strength: adjust(view, 1 + 0.9 * strength)


def _sharpness(view: Tensor, strength: Tensor) -> Tensor:
    """PIL's sharpness at 224 px; the effect of its 3-pixel kernel grows with the square of the pixel's width."""
    return enhance.sharpness(view, 1 + 0.9 * strength * (view.shape[-1] / REFERENCE_SIZE) ** 2)


def _shear(view: Tensor, strength: Tensor, axis: int) -> Tensor:
    """Shears about the center by up to 54 degrees, kornia's interpretation of the paper's 0.3 (17 degrees)."""
    size = view.shape[-1]
    angles = [torch.zeros_like(strength), torch.zeros_like(strength)]
    angles[axis] = 54 * (torch.pi / 180) * strength
    matrix = get_shear_matrix2d(view.new_full((len(view), 2), (size - 1) / 2), *angles)
    return warp_affine(view, matrix[:, :2], (size, size))


def _translate(view: Tensor, strength: Tensor, axis: int) -> Tensor:
    """Moves by up to a tenth of the side, as in kornia; torchvision and timm use up to 0.45."""
    shift = view.new_zeros(len(view), 2)
    shift[:, axis] = strength * (0.1 * view.shape[-1])
    return translate(view, shift)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto_contrast": lambda view, _: enhance.normalize_min_max(view),
    "equalize": lambda view, _: enhance.equalize(view),
    "invert": lambda view, _: enhance.invert(view),
    "rotate": lambda view, strength: rotate(view, 30 * strength),  # degrees
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(enhance.adjust_saturation_with_gray_subtraction),
    "contrast": _enhance(enhance.adjust_contrast_with_mean_subtraction),
    "brightness": _enhance(enhance.adjust_brightness_accumulative),
    "sharpness": _sharpness,
    "shear_x": partial(_shear, axis=0),
    "shear_y": partial(_shear, axis=1),
    "translate_x": partial(_translate, axis=0),
    "translate_y": partial(_translate, axis=1),
}
"""By kornia's names and in its order: from views, N x 3 x r x r in [0, 1], and strengths, N, to the changed views."""


def check_operations(args: ViewArguments) -> None:
    """Raises ValueError if `randaugment_ops` is above the number of operations."""
    if args.randaugment_ops > len(OPERATIONS):
        raise ValueError(
            f"randaugment_ops is {args.randaugment_ops}; RandAugment has {len(OPERATIONS)}, use 1 to {len(OPERATIONS)}"
        )
