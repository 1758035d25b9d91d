"""Draws the parameters of a view with kornia's generators, on the host: of the SimCLR chain or of RandAugment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kornia.augmentation.random_generator import (
    ColorJitterGenerator,
    PlainUniformGenerator,
    ResizedCropGenerator,
)
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.config.views import STANDARD_MAGNITUDE
from hf_essl.views.params import NEUTRAL_JITTER, ViewParams
from hf_essl.views.randaugment import draw_operations


def sample_params(
    args: ViewArguments, count: int, height: int, width: int, magnitude: float, kinds: Sequence[int] = (0,)
) -> ViewParams:
    """Draws views of `count` images of height x width pixels from torch's global generator, one of each for each kind.

    Args:
        magnitude: strength of the colour jitter, linear, 5 being the SimCLR standard; or of RandAugment, 0 to 30.
        kinds: 0 for a first view, 1 for a second, where their blur and solarization differ (BYOL, DINO);
            RandAugment makes no difference.

    Returns:
        The parameters of kinds x count views, those of the first kind first.
    """
    views = count * len(kinds)
    if args.augmentation == "randaugment":
        return _sample_randaugment(args, views, height, width, magnitude)
    blur_p, solarize_p = (
        torch.tensor([_of_kind(p, kind) for kind in kinds]).repeat_interleave(count)
        for p in (args.blur_p, args.solarize_p)
    )
    flip, jittered, gray, blurred, solarized = (
        draw < p
        for draw, p in zip(
            torch.rand(5, views), (args.flip_p, args.jitter_p, args.grayscale_p, blur_p, solarize_p), strict=True
        )
    )
    sigma = PlainUniformGenerator((tuple(args.blur_sigma), "sigma", None, None))
    return ViewParams(
        box=_sample_boxes(args, views, height, width),
        flip=flip,
        jitter=torch.where(jittered[:, None], _sample_jitter(args, views, magnitude), NEUTRAL_JITTER),
        grayscale=gray,
        sigma=_draw(sigma, (views,))["sigma"] * blurred,
        solarize=solarized,
    )


def _sample_randaugment(args: ViewArguments, count: int, height: int, width: int, magnitude: float) -> ViewParams:
    flip = torch.rand(count) < args.flip_p
    operations, strengths = draw_operations(count, args.randaugment_ops, magnitude)
    never = torch.zeros(count, dtype=torch.bool)
    return ViewParams(
        box=_sample_boxes(args, count, height, width),
        flip=flip,
        jitter=NEUTRAL_JITTER.repeat(count, 1),
        grayscale=never,
        sigma=torch.zeros(count),
        solarize=never,
        operations=operations,
        strengths=strengths,
    )


def _sample_boxes(args: ViewArguments, count: int, height: int, width: int) -> Tensor:
    crop = ResizedCropGenerator((1, 1), torch.tensor(args.crop_scale), torch.tensor(args.crop_ratio))
    corners = _draw(crop, (count, 3, height, width))[
        "src"
    ]  # N x 4 x 2 corners, clockwise from the top left, inclusive
    left_top, right_bottom = corners[:, 0], corners[:, 2]
    size = torch.tensor([width, height], dtype=torch.float32)
    return torch.cat([left_top / size, (right_bottom - left_top + 1) / size], dim=1)


def _sample_jitter(args: ViewArguments, count: int, magnitude: float) -> Tensor:
    strength = magnitude / STANDARD_MAGNITUDE
    drawn = _draw(ColorJitterGenerator(*(strength * value for value in args.jitter)), (count,))
    return torch.stack([drawn[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")], dim=1)


def _draw(generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
    generator.make_samplers(torch.device("cpu"), torch.float32)  # kornia draws nothing before this
    return generator(torch.Size(shape))


def _of_kind(values: list[float], kind: int) -> float:
    return values[kind] if len(values) > 1 else values[0]
