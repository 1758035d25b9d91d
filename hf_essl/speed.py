"""The measured speed-up: this run's wall-clock against steps of the plain recipe on the same machine."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from hf_essl.acceleration import compile_backbones
from hf_essl.data.feed import dismiss_workers

if TYPE_CHECKING:
    from hf_essl.trainer import SSLTrainer


def plain_step_seconds(trainer: SSLTrainer, warmup: int = 2, steps: int = 5) -> float:
    """Median seconds of a step of the plain recipe: the full size, two views, no selection.

    Loading, views, forward, backward and optimizer are timed, on a copy of the model: nothing of the run changes.
    In one process alone, since the copy exchanges no gradients.
    """
    model = copy.deepcopy(trainer.model).train()
    compile_backbones(model, trainer.args)
    optimizer = trainer.build_optimizer(model)
    seconds: list[float] = []
    loader = endless(trainer.get_train_dataloader())
    for _ in range(warmup + steps):
        start = time.perf_counter()
        model.before_step(0.0, 0.0)
        images = trainer.feed(next(loader))["image"]
        first, second = trainer.views(images, trainer.views.args.resolution)
        with trainer.accelerator.autocast():
            loss = model(first, second)["loss"].mean()
        loss.backward()
        model.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warmup:])


def endless(loader: DataLoader) -> Generator:
    """Passes over a loader without end; its workers go when the generator does."""
    try:
        while True:
            yield from loader
    finally:
        dismiss_workers(loader)
