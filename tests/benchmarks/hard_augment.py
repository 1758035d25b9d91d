"""The time of a whole step with Hard Augment relative to a step without it, and of its parts.

    python tests/benchmarks/hard_augment.py [--backbone resnet18] [--sizes 128 160 224] [--selection_precision bf16]

A step of SimSiam consists of selection, views, forward, backward and optimizer, on uint8 images in memory. Both kinds
of step run alternately, and the ratio is that of their medians. Predicted from FLOPs: 1 + m r_sel² / (6 r²).
"""

import argparse
import json
import statistics
from collections import defaultdict

import torch

from hf_essl.benchmark import Stopwatch
from hf_essl.config import ViewArguments
from hf_essl.cost import STEP_TO_FORWARD
from hf_essl.methods import SSLModel
from hf_essl.selection import HardAugment
from hf_essl.training.layout import disable_malloc_trim
from hf_essl.training.step import run_step
from hf_essl.views import Views


def step_seconds(model, optimizer, augment: HardAugment, images: torch.Tensor) -> dict[str, float]:
    """Seconds of one step and of its parts."""
    watch = Stopwatch(images.device)
    with watch.part("selection"):
        chosen = augment(model, images)
    with watch.part("views"):
        first, second = augment.views.render_all(images, [chosen.first, chosen.second])
    run_step(model, {"first": first, "second": second}, optimizer, timed=watch.part)
    return {**watch.seconds, "step": sum(watch.seconds.values())}


def measure(size: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of a step and of its parts, without and with the selection."""
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
    seconds = {name: defaultdict(list) for name in arms}
    for round_ in range(options.rounds + 1):
        for name, augment in arms.items():
            for part, value in step_seconds(model, optimizer, augment, images).items():
                if round_:  # the first round is a warm-up
                    seconds[name][part].append(value)
    return {name: {part: statistics.median(v) for part, v in parts.items()} for name, parts in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 160, 224])
    parser.add_argument("--view_executor", default="fused", choices=["fused", "kornia"])
    parser.add_argument("--selection_precision", default="training", choices=["training", "bf16"])
    numbers = {"batch_size": 32, "image_size": 256, "views": 6, "selection_resolution": 64, "rounds": 5, "threads": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_malloc_trim()
    for size in options.sizes:
        parts = measure(size, options)
        ratio = parts["hard"]["step"] / parts["plain"]["step"]
        counted = 1 + options.views * options.selection_resolution**2 / (STEP_TO_FORWARD * size**2)
        found = {name: {part: round(value, 4) for part, value in seconds.items()} for name, seconds in parts.items()}
        found |= {"ratio": round(ratio, 3), "counted": round(counted, 3)}
        print(json.dumps({**vars(options), "size": size, **found}))


if __name__ == "__main__":
    main()
