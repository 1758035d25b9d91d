"""A whole step with Hard Augment against one without it, and where its time goes.

    python tests/benchmarks/hard_augment.py [--backbone resnet18] [--sizes 128 160 224] [--selection_precision bf16]

A step holds views, selection, forward, backward and the optimizer, of SimSiam on uint8 images in memory, laid out as
the trainer does it. Both run in turn, and the ratio is that of their medians. FLOPs alone make it
1 + m r_sel² / (6 r²).
"""

import argparse
import json
import statistics
import time
from collections import defaultdict

import torch

from hf_essl.config import ViewArguments
from hf_essl.methods import SSLModel
from hf_essl.selection import HardAugment
from hf_essl.training.layout import disable_malloc_trim
from hf_essl.views import Views


class Timed:
    """Adds up the seconds of what runs under a name."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def __call__(self, name, function, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start
        return result


def step(model, optimizer, augment: HardAugment, images: torch.Tensor) -> dict[str, float]:
    """Seconds of the parts of one step, by name."""
    timed = Timed()
    chosen = timed("selection", augment, model, images)
    first, second = timed("views", augment.views.render_all, images, chosen[:2])
    loss = timed("forward", lambda: model(first, second)["loss"].mean())
    timed("backward", loss.backward)
    timed("optimizer", optimizer.step)
    optimizer.zero_grad()
    return timed.seconds


def measure(size: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of each part of a step, without and with the selection."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SSLModel.from_timm(options.backbone).train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    hard = {"selection": "hard", "num_views": options.views, "selection_resolution": options.selection_resolution}
    hard["selection_precision"] = options.selection_precision
    arms = {
        name: HardAugment(Views(ViewArguments(resolution=size, **selection, view_executor=options.view_executor)))
        for name, selection in (("plain", {}), ("hard", hard))
    }
    taken = {name: defaultdict(list) for name in arms}
    for round_ in range(options.rounds + 1):
        for name, augment in arms.items():
            seconds = step(model, optimizer, augment, images)
            for part, value in {**seconds, "step": sum(seconds.values())}.items() if round_ else ():
                taken[name][part].append(value)
    return {name: {part: statistics.median(v) for part, v in parts.items()} for name, parts in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 160, 224])
    parser.add_argument("--view_executor", default="fused", choices=["fused", "kornia"])
    parser.add_argument("--selection_precision", default="training", choices=["training", "bf16"])
    defaults = {
        "batch_size": 32, "image_size": 256, "views": 6, "selection_resolution": 64, "rounds": 5, "threads": 2,
    }  # fmt: skip
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_malloc_trim()
    for size in options.sizes:
        parts = measure(size, options)
        ratio = parts["hard"]["step"] / parts["plain"]["step"]
        counted = 1 + options.views * options.selection_resolution**2 / (6 * size**2)
        seconds = {name: {part: round(value, 4) for part, value in taken.items()} for name, taken in parts.items()}
        print(
            json.dumps(
                {**vars(options), "size": size, **seconds, "ratio": round(ratio, 3), "counted": round(counted, 3)}
            )
        )


if __name__ == "__main__":
    main()
