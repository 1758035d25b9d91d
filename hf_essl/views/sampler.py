"""Samples the parameters of views with kornia's generators, on the host: SimCLR's chain or RandAugment."""

from collections.abc import Sequence

import torch
from kornia.augmentation.random_generator import ColorJitterGenerator, PlainUniformGenerator, ResizedCropGenerator
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.config.views import STANDARD_MAGNITUDE
from hf_essl.views.params import NEUTRAL_JITTER, ViewParams
from hf_essl.views.randaugment import sample_operations


def sample_params(
    args: ViewArguments, count: int, height: int, width: int, magnitude: float, kinds: Sequence[int] = (0,)
) -> ViewParams:
    """Samples one view per kind of `count` images of height x width pixels, from torch's global generator.

    Args:
        magnitude: strength of the color jitter, linear from 0, or of RandAugment.
        kinds: 0 for a first view, 1 for a second, if their blur and solarization differ (BYOL, DINO); RandAugment
            ignores them.

    Returns the parameters of kinds x count views, those of the first kind first.
    """
    views = count * len(kinds)
    if args.augmentation == "randaugment":
        flip = torch.rand(views) < args.flip_p
        operations, strengths = sample_operations(views, args.randaugment_ops, magnitude)
        box = _sample_boxes(args, views, height, width)
        return ViewParams.neutral(views, box=box, flip=flip, operations=operations, strengths=strengths)
    blur_p, solarize_p = (
        torch.tensor([p[kind] if len(p) > 1 else p[0] for kind in kinds]).repeat_interleave(count)
        for p in (args.blur_p, args.solarize_p)
    )
    probabilities = (args.flip_p, args.jitter_p, args.grayscale_p, blur_p, solarize_p)
    flip, jittered, gray, blurred, solarize = (x < p for x, p in zip(torch.rand(5, views), probabilities, strict=True))
    box = _sample_boxes(args, views, height, width)
    jitter = torch.where(jittered[:, None], _sample_jitter(args, views, magnitude), NEUTRAL_JITTER)
    blur = PlainUniformGenerator((tuple(args.blur_sigma), "sigma", None, None))
    sigma = _sample(blur, (views,))["sigma"] * blurred
    return ViewParams.neutral(views, box=box, flip=flip, jitter=jitter, grayscale=gray, sigma=sigma, solarize=solarize)


def _sample_boxes(args: ViewArguments, count: int, height: int, width: int) -> Tensor:
    crop = ResizedCropGenerator((1, 1), torch.tensor(args.crop_scale), torch.tensor(args.crop_ratio))
    corners = _sample(crop, (count, 3, height, width))["src"]  # N x 4 x 2, clockwise from the top left, inclusive
    left_top, right_bottom = corners[:, 0], corners[:, 2]
    size = torch.tensor([width, height], dtype=torch.float32)
    return torch.cat([left_top / size, (right_bottom - left_top + 1) / size], dim=1)


def _sample_jitter(args: ViewArguments, count: int, magnitude: float) -> Tensor:
    strength = magnitude / STANDARD_MAGNITUDE
    factors = _sample(ColorJitterGenerator(*(strength * value for value in args.jitter)), (count,))
    return torch.stack([factors[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")], dim=1)


def _sample(generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
    generator.make_samplers(torch.device("cpu"), torch.float32)  # without it, kornia samples nothing
    return generator(torch.Size(shape))
