"""What dropped patch tokens save: seconds of a student's forward and backward pass, beside the counted operations.

    python -m tests.benchmarks.tokens [--threads 1] [--batch 16] [--rounds 5]

vit_tiny (5.5 M parameters) with SimSiam's small heads, two views, at 64 px (patches of 8 px) and 224 px (of 16 px).
Each round times all shares one after the other, so that a drift of the machine affects all alike; the median counts.
"""

import argparse
import statistics
import time

import torch

from hf_essl.config import ViewArguments
from hf_essl.cost import FlopCounter
from hf_essl.methods import METHODS, SSLModel
from hf_essl.methods.tokens import patch_count
from hf_essl.views.tokens import kept_tokens

SHARES = (0.25, 0.5, 0.75, 1.0)
PATCH = {64: 8, 224: 16}  # side in pixels, by resolution


def build(resolution: int) -> SSLModel:
    settings = {"method_args": METHODS["simsiam"].small_args, "backbone_args": {"patch_size": PATCH[resolution]}}
    return SSLModel.from_timm("vit_tiny_patch16_224", resolutions=(resolution,), **settings).train()


def seconds(model: SSLModel, views: torch.Tensor, share: float) -> float:
    """Of forward and backward; drawing the tokens is part of it."""
    start = time.perf_counter()
    tokens = None
    if share < 1:
        patches = patch_count(model.backbone, views.shape[-1])
        tokens = kept_tokens(torch.randint(2**32, (2 * views.shape[1],)), patches, share).unflatten(0, (-1, 2))
    model(*views, tokens=tokens)["loss"].mean().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| px | tokens kept | ms per image | speed-up | counted |\n| --- | --- | --- | --- | --- |")
    for resolution in PATCH:
        model, views = build(resolution), torch.randn(2, args.batch, 3, resolution, resolution)
        counter = FlopCounter.of(model, ViewArguments(resolution=resolution))
        for share in SHARES:
            seconds(model, views, share)  # warm-up
        rounds = [{share: seconds(model, views, share) for share in SHARES} for _ in range(args.rounds)]
        found = {share: statistics.median(times[share] for times in rounds) for share in SHARES}
        for share in SHARES:
            counted = counter.step(resolution).total / counter.step(resolution, share).total
            speedup, each = found[1.0] / found[share], 1000 * found[share] / args.batch
            print(f"| {resolution} | {share:.0%} | {each:.1f} | {speedup:.2f} x | {counted:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
