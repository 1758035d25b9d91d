"""The kornia executor: kornia's own operations one after the other, for SimCLR's chain and for RandAugment.

It is slower than the fused executor, whose pixels must equal its own.
"""

import torch
from kornia import enhance
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d
from torch import Tensor

from hf_essl.views.params import NEUTRAL_JITTER, REFERENCE_SIZE, ViewParams, apply_where_
from hf_essl.views.randaugment import augment_
from hf_essl.views.resample import resample


def render_kornia(images: Tensor, params: ViewParams, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 N x 3 x H x W and the parameters of M views to normalized float32 M x 3 x size x size.

    The order is SimCLR's: crop and flip, jitter (brightness, contrast, saturation, hue), grayscale, blur, solarize;
    then RandAugment's operations. Sampled parameters use one of the chains and are neutral for the other.

    Args:
        params: view v is of image v mod N.
        mean, std: 3 each, of pixels in [0, 1].
    """
    view = resample(images, params.box, params.flip, size).clamp_(0, 1)
    apply_where_(view, (params.jitter != NEUTRAL_JITTER).any(dim=1), params.jitter, color_jitter)
    apply_where_(view, params.grayscale, None, lambda x: rgb_to_grayscale(x).expand(-1, 3, -1, -1))
    apply_where_(view, params.sigma > 0, params.sigma * (size / REFERENCE_SIZE), gaussian_blur)
    apply_where_(view, params.solarize, None, lambda x: enhance.solarize(x, 0.5))
    augment_(view, params.operations, params.strengths)
    return view.sub_(mean[:, None, None]).div_(std[:, None, None])


def color_jitter(view: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in this order, as in torchvision: N x 3 x r x r and N x 4."""
    brightness, contrast, saturation, hue = factors.unbind(dim=1)
    view = enhance.adjust_brightness_accumulative(view, brightness)
    view = enhance.adjust_contrast_with_mean_subtraction(view, contrast)
    view = enhance.adjust_saturation_with_gray_subtraction(view, saturation)
    return enhance.adjust_hue(view, 2 * torch.pi * hue)


def gaussian_blur(view: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, N x 3 x r x r and sigma in pixels, N; the kernel spans a tenth of the side (SimCLR)."""
    kernel = 2 * round(view.shape[-1] / 20) + 1
    return gaussian_blur2d(view, (kernel, kernel), sigma[:, None].expand(-1, 2))
