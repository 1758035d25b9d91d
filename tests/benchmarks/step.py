"""The trainer's step and a bare PyTorch step of the same network on the same tensors.

    python tests/benchmarks/step.py [--backbone test_resnet] [--resolution 64] [--batch_size 64] [--steps 30]

Both skip decoding and augmentation: images are in memory, and the two views are made once. The difference is the
Trainer's own work: callbacks, logging, scheduler, clock. Both run alternately, and the ratio is that of their medians;
nothing else may run on the machine.
"""

import argparse
import json
import statistics
import tempfile
import time

import torch

from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.data import CachedImages
from hf_essl.methods import SSLModel
from hf_essl.selection import Selection
from hf_essl.trainer import SSLTrainer
from hf_essl.training.step import run_step


def build(options, folder):
    """A trainer, and the views that it always trains on."""
    pixels = torch.randint(0, 256, (options.batch_size * 4, 3, 32, 32), dtype=torch.uint8)
    quiet = {"save_strategy": "no", "disable_tqdm": True, "measure_speedup": False}
    args = SSLTrainingArguments(
        output_dir=folder, per_device_train_batch_size=options.batch_size, max_steps=options.steps, **quiet
    )
    trainer = SSLTrainer(
        SSLModel.from_timm(options.backbone),
        args,
        CachedImages(pixels, None, None, "noise"),
        view_args=ViewArguments(resolution=options.resolution, resolution_step=1),
        data_args=DataArguments(image_size=32),
    )
    shape = (options.batch_size, 3, options.resolution, options.resolution)
    views = {name: torch.randn(shape, device=args.device) for name in ("first", "second")}
    trainer.choose_pair = lambda images, aspect: Selection(None, None)
    trainer.render = lambda images, chosen: views
    return trainer, views


def trainer_seconds(options, folder):
    trainer, _ = build(options, folder)
    trainer.train()
    return trainer.clock.seconds / options.steps


def bare_seconds(options, folder):
    trainer, views = build(options, folder)
    model, optimizer = trainer.model.train(), trainer.create_optimizer()
    start = time.perf_counter()
    for _ in range(options.steps):
        run_step(model, views, optimizer)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / options.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="test_resnet")
    for name, default in (("resolution", 64), ("batch_size", 64), ("steps", 30), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    seconds = {"trainer": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds + 1):
            for name, measure in (("trainer", trainer_seconds), ("bare", bare_seconds)):
                measured = measure(options, folder)
                if round_:  # the first round is a warm-up
                    seconds[name].append(measured)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({**vars(options), "seconds": medians, "ratio": medians["trainer"] / medians["bare"]}))


if __name__ == "__main__":
    main()
