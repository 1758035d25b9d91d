"""The kornia executor: kornia's own operations one after the other, for SimCLR's chain and for RandAugment.

It is slower than the fused executor, whose pixels must equal its own.
"""

import torch
from kornia import enhance
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d
from torch import Tensor

from hf_essl.views.params import REFERENCE_SIZE, ViewParams, apply_in_order_, apply_where_
from hf_essl.views.randaugment import augment_
from hf_essl.views.resample import resample

JITTER = (  # each N x 3 x r x r and N factors to N x 3 x r x r
    enhance.adjust_brightness_accumulative,
    enhance.adjust_contrast_with_mean_subtraction,
    enhance.adjust_saturation_with_gray_subtraction,
    lambda view, turns: enhance.adjust_hue(view, 2 * torch.pi * turns),
)


def render_kornia(images: Tensor, params: ViewParams, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 N x 3 x H x W and the parameters of M views to normalized float32 M x 3 x size x size.

    The order is SimCLR's: crop and flip, jitter (its operations in the order of `params.order`), grayscale, blur,
    solarize; then RandAugment's operations. Sampled parameters use one of the chains and are neutral for the other.

    Args:
        params: view v is of image v mod N.
        mean, std: 3 each, of pixels in [0, 1].
    """
    view = resample(images, params.box, params.flip, size).clamp_(0, 1)
    apply_in_order_(view, *params.jitter_in_order(), JITTER)
    apply_where_(view, params.grayscale, None, lambda x: rgb_to_grayscale(x).expand(-1, 3, -1, -1))
    apply_where_(view, params.sigma > 0, params.sigma * (size / REFERENCE_SIZE), gaussian_blur)
    apply_where_(view, params.solarize, None, lambda x: enhance.solarize(x, 0.5))
    augment_(view, params.operations, params.strengths)
    return view.sub_(mean[:, None, None]).div_(std[:, None, None])


def gaussian_blur(view: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, N x 3 x r x r and sigma in pixels, N; the kernel spans a tenth of the side (SimCLR)."""
    kernel = 2 * round(view.shape[-1] / 20) + 1
    return gaussian_blur2d(view, (kernel, kernel), sigma[:, None].expand(-1, 2))
