"""Milliseconds per batch of the fused executor, of kornia's functions and of kornia's AugmentationSequential.

The fused executor is also measured with the jitter's operations in a random order (`random order`).

    python tests/benchmarks/views.py [--sizes 224 96 64] [--batch_size 64] [--image_size 256] [--rounds 5] [--compiled]

One view of each image, SimCLR's chain. All get the same images and the same parameters, which kornia's container
samples in each round. They run alternately; ratios are those of the medians.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from functools import partial

import kornia.augmentation as K
import torch

from hf_essl.config import ViewArguments
from hf_essl.views import ViewParams
from hf_essl.views.fused import render_fused
from hf_essl.views.params import NEUTRAL_JITTER, REFERENCE_SIZE
from hf_essl.views.render import render_kornia
from hf_essl.views.views import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)


def container(args: ViewArguments, size: int) -> K.AugmentationSequential:
    kernel, scale = 2 * round(size / 20) + 1, size / REFERENCE_SIZE
    return K.AugmentationSequential(
        K.RandomResizedCrop((size, size), tuple(args.crop_scale), tuple(args.crop_ratio), align_corners=False),
        K.RandomHorizontalFlip(args.flip_p),
        K.ColorJitter(*args.jitter, p=args.jitter_p, order=(0, 1, 2, 3)),
        K.RandomGrayscale(p=args.grayscale_p),
        K.RandomGaussianBlur((kernel, kernel), tuple(scale * s for s in args.blur_sigma), p=args.blur_p[0]),
        K.Normalize(MEAN, STD),
        data_keys=["input"],
    )


def sample(chain: K.AugmentationSequential, shape: torch.Size, size: int) -> tuple[list, ViewParams]:
    """Parameters of one batch, for the container and for the executors."""
    items = chain.forward_parameters(shape)
    crop, flip, jitter, gray, blur = (item.data for item in items[:5])
    flipped, jittered, grayscale, blurred = (data["batch_prob"] > 0.5 for data in (flip, jitter, gray, blur))
    left_top, right_bottom = crop["src"][:, 0], crop["src"][:, 2]
    sides = torch.tensor([shape[3], shape[2]])
    factors = torch.stack([jitter[f"{n}_factor"] for n in ("brightness", "contrast", "saturation", "hue")], dim=1)
    return items, ViewParams.neutral(
        shape[0],
        box=torch.cat([left_top / sides, (right_bottom - left_top + 1) / sides], dim=1),
        flip=flipped,
        jitter=torch.where(jittered[:, None], factors, NEUTRAL_JITTER),
        grayscale=grayscale,
        sigma=blur["sigma"] * blurred * REFERENCE_SIZE / size,
    )


def in_random_order(images: torch.Tensor, params: ViewParams, *rest) -> torch.Tensor:
    shuffled = torch.rand(len(params), 4, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return render_fused(images, replace(params, order=shuffled), *rest)


def measure(size: int, options: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds per batch, by name."""
    chain = container(ViewArguments(), size)
    shape = torch.Size((options.batch_size, 3, options.image_size, options.image_size))
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    executors = {"fused": render_fused, "kornia": render_kornia, "random order": in_random_order}
    if options.compiled:
        executors["compiled"] = partial(render_fused, compiled=True)
    seconds: dict[str, list[float]] = {"AugmentationSequential": [], **{name: [] for name in executors}}
    for round_ in range(options.rounds + 1):
        items, params = sample(chain, shape, size)
        for name, measured in seconds.items():
            start = time.perf_counter()
            if name in executors:
                executors[name](images, params, size, MEAN, STD)
            else:
                chain(images.float() / 255, params=items)
            if round_:  # the first round is a warm-up
                measured.append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(measured) for name, measured in seconds.items()}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 96, 64])
    for name, default in (("batch_size", 64), ("image_size", 256), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compiled", action="store_true", help="also measure compiled color operations")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for size in options.sizes:
        found = measure(size, options)
        found |= {f"{name} / fused": found[name] / found["fused"] for name in list(found) if name != "fused"}
        rounded = {name: round(value, 2) for name, value in found.items()}
        print(json.dumps({"size": size, **vars(options), **rounded}))


if __name__ == "__main__":
    main()
