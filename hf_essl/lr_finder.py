"""The learning-rate range test (appendix C): the loss while the learning rate grows exponentially."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from hf_essl.config.fields import Count, NonNegativeInt, Positive, checked
from hf_essl.data import image_count, sample_images
from hf_essl.methods import SSLModel
from hf_essl.reporting.figures import BLUE, GREY, RED, save_figure
from hf_essl.selection import frozen_running_stats, plain_views
from hf_essl.trainer import SSLTrainer
from hf_essl.training.optimizer import build_optimizer, clip_gradients
from hf_essl.training.step import endless, run_step
from hf_essl.views import ViewParams


@dataclass(frozen=True)
class LRRange:
    """The result of a range test, one entry per step."""

    learning_rates: list[float]
    train_losses: list[float]
    validation_losses: list[float]  # empty without validation images
    suggestion: float  # the peak learning rate, where the fall of the (validation) loss meets its plateau
    ended_early: bool = False  # the next loss was not finite

    @property
    def remark(self) -> str:
        """What the suggestion is, in words."""
        if self.suggestion == self.learning_rates[-1]:
            above = "and is not finite above" if self.ended_early else "at the end of the range; raise --end"
            return f"the loss still falls here, {above}"
        if self.suggestion == self.learning_rates[0]:
            return "the loss only rises from here; lower --start"
        return "the loss has reached its plateau here"


@checked
def lr_range_test(
    trainer: SSLTrainer,
    *,
    start: Positive = 1e-3,
    end: Positive = 1.0,
    steps: Count = 200,
    validation_images: NonNegativeInt = 4096,
) -> LRRange:
    """Trains a copy of the model while the learning rate grows exponentially from `start` to `end`.

    Every parameter trains, as after the epochs in which DINO's last layer is frozen. The momentum of a teacher, tau,
    keeps its initial value: a rise to 1 within the test would change the loss as well. For the same reason, MoCo's
    queue and DINO's center are first filled by forward passes alone.

    The trainer's model, optimizer and random state do not change. The test ends early if the loss is not finite.

    Args:
        validation_images: images for the loss after each step, 4,096 in the paper; evaluation images if there are any;
            0 measures only the training loss.

    Raises ValueError for an invalid range, or fewer than 10 steps.
    """
    check_range(start, end, steps)
    rates = [start * (end / start) ** (step / (steps - 1)) for step in range(steps)]
    with torch.random.fork_rng():
        train_losses, validation_losses = _run(trainer, rates, validation_images)
    judged = validation_losses or train_losses
    tested = rates[: len(train_losses)]
    return LRRange(tested, train_losses, validation_losses, suggest(rates, judged), ended_early=len(tested) < steps)


def check_range(start: float, end: float, steps: int) -> None:
    """Raises ValueError for a range that cannot be tested."""
    if not 0 < start < end < math.inf or steps < 10:
        raise ValueError(f"start {start}, end {end}, steps {steps}: a test needs 0 < start < end and 10 steps or more")


def suggest(rates: list[float], losses: list[float], smoothing: float = 0.8) -> float:
    """The learning rate at the knee between the fall of the smoothed loss and its plateau (Fig. 4).

    Between the first and the lowest loss, over log rates, it is the point farthest below the straight line, since a
    plateau may still fall slowly. Without a plateau it is the lowest loss itself.
    """
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else smoothing * smooth[-1] + (1 - smoothing) * loss)
    lowest = smooth.index(min(smooth))
    slope = (smooth[lowest] - smooth[0]) / max(1, lowest)  # the rates grow by a constant factor per step
    depths = [smooth[0] + slope * step - loss for step, loss in enumerate(smooth[: lowest + 1])]
    return rates[max(range(lowest + 1), key=lambda step: (depths[step], step))]


def _run(trainer: SSLTrainer, rates: list[float], validation_images: int) -> tuple[list[float], list[float]]:
    model = copy.deepcopy(trainer.model).train()
    optimizer = build_optimizer(model, trainer.args)
    loader = endless(trainer.get_train_dataloader())
    held_out = _validation_views(trainer, validation_images)
    trainer.image_targets.fill(trainer.model, trainer.train_dataset, trainer.accelerator)
    _settle(model, trainer, loader)
    train_losses: list[float] = []
    validation_losses: list[float] = []

    def backward(loss: Tensor) -> None:
        loss.backward()
        clip_gradients(model, trainer.args)

    for rate in tqdm(rates, desc="range test", disable=trainer.args.disable_tqdm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = trainer.feed(next(loader))
        views = plain_views(trainer.views, batch["image"], aspect=batch["aspect"])
        with trainer.show_images(batch, model):
            loss = run_step(
                model,
                views,
                optimizer,
                epoch=model.frozen_epochs,
                autocast=trainer.accelerator.autocast,
                backward=backward,
            )
        if not math.isfinite(loss.item()):
            break
        train_losses.append(loss.item())
        if held_out:
            validation_losses.append(_loss_on(model, trainer, held_out))
    return train_losses, validation_losses


@torch.no_grad()
def _settle(model: SSLModel, trainer: SSLTrainer, loader: Iterator) -> None:
    """Forward passes until queue and center are those of the network, whose weights do not change."""
    steps = range(model.settling_steps(trainer.args.per_device_train_batch_size))
    for _ in tqdm(steps, desc="filling queue or center", disable=trainer.args.disable_tqdm or not steps):
        batch = trainer.feed(next(loader))
        views = plain_views(trainer.views, batch["image"], aspect=batch["aspect"])
        model.before_step(progress=0.0, epoch=0.0)
        with trainer.show_images(batch, model), trainer.accelerator.autocast():
            model(**views)
        model.after_step()


def _validation_views(trainer: SSLTrainer, count: int) -> list[tuple[Tensor, ViewParams, ViewParams, Tensor | None]]:
    """Images in batches with the parameters of two views each, drawn once to make the steps comparable.

    The last of each batch is what an `image_teacher` says about the images.
    """
    if not count:
        return []
    dataset = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    parts = sample_images(dataset, min(count, image_count(dataset) or count))
    batches = zip(*(part.split(trainer.args.per_device_train_batch_size) for part in parts), strict=True)
    look = partial(trainer.image_targets.look, trainer.model)
    return [
        (images, *trainer.views.sample_all(images, (0, 1), aspect), look(images.to(trainer.args.device), aspect))
        for images, aspect in batches
        if len(images) > 1
    ]


@torch.no_grad()
def _loss_on(model: SSLModel, trainer: SSLTrainer, batches) -> float:
    """Mean loss with batch statistics, as in training; the model does not change."""
    total, count = 0.0, 0
    with frozen_running_stats(model):
        for images, first, second, targets in batches:
            images = images.to(trainer.args.device)
            views = trainer.views.render(images, first), trainer.views.render(images, second)
            with trainer.accelerator.autocast(), model.show_images(targets):
                total += model(*views)["loss"].float().sum().item()
            count += len(images)
    return total / count


def draw_lr_range(found: LRRange, path: str | Path, title: str = "") -> Path:
    """Training and validation loss against the learning rate on a logarithmic axis (Fig. 4), with the suggestion."""
    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axis = figure.subplots()
    for losses, label, color in ((found.train_losses, "training", GREY), (found.validation_losses, "validation", RED)):
        if losses:
            axis.plot(found.learning_rates[: len(losses)], losses, color=color, linewidth=1.4, label=label)
    axis.axvline(found.suggestion, color=BLUE, linestyle="--", label=f"suggestion {found.suggestion:.3g}")
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False)
    return save_figure(figure, path)
