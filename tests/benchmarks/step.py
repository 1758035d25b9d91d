"""The trainer's step against a bare PyTorch step of the same network on the same tensors.

    python tests/benchmarks/step.py [--backbone test_resnet] [--resolution 64] [--batch_size 64] [--steps 30]

Decoding and augmentation are left out on both sides: the images are in memory and the two views are made once. What
remains is the Trainer's own work: callbacks, logging, scheduler, the clock. Both run in turn, and the ratio is that of
their medians; a fair ratio needs a machine that does nothing else.
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
from hf_essl.trainer import SSLTrainer


def build(options, folder):
    images = CachedImages(
        torch.randint(0, 256, (options.batch_size * 4, 3, 32, 32), dtype=torch.uint8), None, None, "noise"
    )
    args = SSLTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=options.batch_size,
        max_steps=options.steps,
        save_strategy="no",
        disable_tqdm=True,
        measure_speedup=False,
    )
    model = SSLModel.from_timm(options.backbone)
    trainer = SSLTrainer(
        model,
        args,
        images,
        view_args=ViewArguments(resolution=options.resolution, resolution_step=1),
        data_args=DataArguments(image_size=32),
    )
    shape = (options.batch_size, 3, options.resolution, options.resolution)
    views = tuple(torch.randn(shape, device=args.device) for _ in range(2))
    trainer.make_views = lambda images: dict(zip(("first", "second"), views, strict=True))
    return trainer, views


def trainer_step(options, folder):
    trainer, _ = build(options, folder)
    trainer.train()
    return trainer.clock.seconds / options.steps


def bare_step(options, folder):
    trainer, views = build(options, folder)
    model, optimizer = trainer.model.train(), trainer.create_optimizer()
    start = time.perf_counter()
    for _ in range(options.steps):
        model(*views)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
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
            for name, measure in (("trainer", trainer_step), ("bare", bare_step)):
                taken = measure(options, folder)
                if round_:  # the first round warms up
                    seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({**vars(options), "seconds": medians, "ratio": medians["trainer"] / medians["bare"]}))


if __name__ == "__main__":
    main()
