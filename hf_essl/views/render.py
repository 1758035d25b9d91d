"""The executor of kornia's own operations, one after the other: SimCLR's chain or RandAugment at any size.

It is slower than the fused executor, which has to give the same pixels, and takes RandAugment as well.
"""

from __future__ import annotations

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    solarize,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor

from hf_essl.views.params import NEUTRAL_JITTER, REFERENCE_SIZE, ViewParams
from hf_essl.views.randaugment import augment
from hf_essl.views.resample import resample
from hf_essl.views.where import apply_where


def render_kornia(images: Tensor, params: ViewParams, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 N x 3 x H x W and the parameters of M views to normalised float32 M x 3 x size x size.

    Args:
        params: view v is one of image v mod N.
        mean, std: 3 each, of pixels in [0, 1].
    """
    return render_views(images, params, size).sub_(mean[:, None, None]).div_(std[:, None, None])


def render_views(images: Tensor, params: ViewParams, size: int) -> Tensor:
    """uint8 N x 3 x H x W to float32 M x 3 x size x size in [0, 1].

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
    """`resample` to values in [0, 1]."""
    return resample(images, box, flip, size).clamp_(0, 1)


def color_jitter(view: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in this order, as torchvision defines them: N x 3 x r x r and N x 4."""
    brightness, contrast, saturation, hue = factors.unbind(dim=1)
    view = adjust_brightness_accumulative(view, brightness)
    view = adjust_contrast_with_mean_subtraction(view, contrast)
    view = adjust_saturation_with_gray_subtraction(view, saturation)
    return adjust_hue(view, 2 * torch.pi * hue)


def gaussian_blur(view: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur, N x 3 x r x r and sigma in pixels, N; the kernel spans a tenth of the side (SimCLR)."""
    kernel = 2 * round(view.shape[-1] / 20) + 1
    return gaussian_blur2d(view, (kernel, kernel), sigma[:, None].expand(-1, 2))
