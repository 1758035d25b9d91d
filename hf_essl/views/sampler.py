"""Samples the parameters of views with kornia's generators, on the host: SimCLR's chain or RandAugment."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from kornia.augmentation.random_generator import ColorJitterGenerator, PlainUniformGenerator
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.config.views import STANDARD_MAGNITUDE
from hf_essl.views.crops import sample_boxes
from hf_essl.views.params import NEUTRAL_JITTER, ViewParams
from hf_essl.views.randaugment import sample_operations
from hf_essl.views.tokens import BITS

LOCAL = 2  # the kind of a local view; 0 and 1 are the first and the second view of a pair


def sample_params(args: ViewArguments, aspect: Tensor, magnitude: float, kinds: Sequence[int] = (0,)) -> ViewParams:
    """Samples one view per kind of N images from torch's global generator.

    Args:
        aspect: N, width / height of the whole images.
        magnitude: strength of the color jitter, linear from 0, or of RandAugment.
        kinds: 0 for a first view, 1 for a second, if their blur and solarization differ (BYOL, DINO), and `LOCAL`
            for a local view; for RandAugment, only local views differ.

    Returns the parameters of kinds x N views, those of the first kind first.
    """
    params = _sample_augmentations(args, aspect, magnitude, kinds)
    if args.drops_tokens:
        params = replace(params, tokens=torch.randint(2**BITS, (len(params),)))
    return params


def _sample_augmentations(args: ViewArguments, aspect: Tensor, magnitude: float, kinds: Sequence[int]) -> ViewParams:
    count, aspect = len(aspect), aspect.repeat(len(kinds))
    views = len(aspect)
    if args.augmentation == "randaugment":
        flip = torch.rand(views) < args.flip_p
        operations, strengths = sample_operations(views, args.randaugment_ops, magnitude)
        box = _sample_boxes(args, aspect, kinds)
        return ViewParams.neutral(views, box=box, flip=flip, operations=operations, strengths=strengths)
    blur_p, solarize_p = (
        torch.tensor([_of_kind(kind, p, local) for kind in kinds]).repeat_interleave(count)
        for p, local in ((args.blur_p, args.local_blur_p), (args.solarize_p, 0.0))
    )
    probabilities = (args.flip_p, args.jitter_p, args.grayscale_p, blur_p, solarize_p)
    flip, jittered, gray, blurred, solarize = (x < p for x, p in zip(torch.rand(5, views), probabilities, strict=True))
    box = _sample_boxes(args, aspect, kinds)
    jitter = torch.where(jittered[:, None], _sample_jitter(args, views, magnitude), NEUTRAL_JITTER)
    blur = PlainUniformGenerator((tuple(args.blur_sigma), "sigma", None, None))
    sigma = _sample(blur, (views,))["sigma"] * blurred * _local_blur(args, kinds).repeat_interleave(count)
    changes = {"box": box, "flip": flip, "jitter": jitter, "grayscale": gray, "sigma": sigma, "solarize": solarize}
    if args.jitter_order == "random":
        changes["order"] = torch.rand(views, 4).argsort(dim=1)
    return ViewParams.neutral(views, **changes)


def _local_blur(args: ViewArguments, kinds: Sequence[int]) -> Tensor:
    """Factors of the blur of each kind: local views get as many pixels of it as the pair, as published for DINO."""
    wider = args.resolution / args.local_resolution if args.local_views else 1.0
    return torch.tensor([wider if kind == LOCAL else 1.0 for kind in kinds])


def _of_kind(kind: int, pair: Sequence[float], local: float) -> float:
    return local if kind == LOCAL else pair[kind] if len(pair) > 1 else pair[0]


def _sample_boxes(args: ViewArguments, aspect: Tensor, kinds: Sequence[int]) -> Tensor:
    """Crops of one view per kind, with the local views' own scale: (kinds x N) x 4."""
    parts, count = [], len(aspect) // len(kinds)
    for is_local, group in itertools.groupby(kind == LOCAL for kind in kinds):
        scale = args.local_scale if is_local else args.crop_scale
        parts.append(sample_boxes(aspect[: count * len(list(group))], scale, args.crop_ratio))
    return torch.cat(parts)


def _sample_jitter(args: ViewArguments, count: int, magnitude: float) -> Tensor:
    strength = magnitude / STANDARD_MAGNITUDE
    factors = _sample(ColorJitterGenerator(*(strength * value for value in args.jitter)), (count,))
    return torch.stack([factors[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")], dim=1)


def _sample(generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
    generator.make_samplers(torch.device("cpu"), torch.float32)  # without it, kornia samples nothing
    return generator(torch.Size(shape))
