"""How fast a recipe trains, stage by stage: the parts of a step, the whole of it, and the bare step as the limit."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_essl.callbacks import EvaluateEveryCallback, StopOnSignalCallback
from hf_essl.data import Images, load_images
from hf_essl.methods.base import check_backbone
from hf_essl.pretrain import build_trainer
from hf_essl.recipe import Recipe
from hf_essl.schedules import SuperProgressiveCallback, magnitude_schedule, resolution_schedule
from hf_essl.speed import endless
from hf_essl.trainer import SSLTrainer
from hf_essl.views import ViewParams, Views

PARTS = ("decode", "views", "selection", "forward", "backward", "optimizer")
"""One after the other, each waited for: on a GPU their sum is more than a step, which overlaps them. `views` are those
that are compared and those that train, `selection` the forward pass of the former."""


@dataclass(frozen=True)
class StageSpeed:
    """One resolution of a recipe.

    seconds: of a step of the batch, by name: `PARTS` (no selection where the recipe has none); `kornia`, the views by
    kornia's executor; `whole`, the training as it runs; `bare`, forward, backward and optimizer on two views that
    are there; and `limit`, the same after a selection among small views that are there: all that the network does.
    """

    resolution: int
    share: float
    """Share of the run's steps at this resolution."""
    seconds: dict[str, float]

    @property
    def of_limit(self) -> float:
        """images/s of the whole over those of the limit."""
        return self.seconds["limit"] / self.seconds["whole"]


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` has measured, with what tells it from another."""

    recipe: str
    method: str
    backbone: str
    device: str
    threads: int
    workers: int
    cache: str
    torch: str
    batch_size: int
    steps: int
    rounds: int
    stages: tuple[StageSpeed, ...]

    @property
    def of_limit(self) -> float:
        """images/s over the whole run, with each stage's share of its steps, over those of the limit."""
        limit, whole = (sum(s.share * s.seconds[name] for s in self.stages) for name in ("limit", "whole"))
        return limit / whole

    def images_per_second(self, stage: StageSpeed) -> dict[str, float]:
        return {name: self.batch_size / seconds for name, seconds in stage.seconds.items()}

    def describe(self) -> str:
        """What was measured where, in one line."""
        return (
            f"{self.recipe}: {self.method} on {self.backbone}, batches of {self.batch_size}, cache {self.cache}, "
            f"{self.workers} workers, {self.device}, {self.threads} threads; medians of {self.rounds} x {self.steps} "
            f"steps, images/s"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = [
            {
                **dataclasses.asdict(stage),
                "images_per_second": self.images_per_second(stage),
                "of_limit": stage.of_limit,
            }
            for stage in self.stages
        ]
        return {**dataclasses.asdict(self), "stages": stages, "of_limit": self.of_limit}


def benchmark(
    recipe: Recipe, steps: int = 5, rounds: int = 3, report: Callable[[str], None] = lambda line: None
) -> Benchmark:
    """Trains a few steps at each resolution of a recipe and times them; nothing of it is kept.

    The limit is the network's own work on views that are there. Each round times the whole training, the parts and the
    limit in turn, after steps that warm up, so that a machine whose speed drifts treats all alike; the median of the
    rounds counts. The magnitude of the augmentation is that of half the run.

    Args:
        steps: that are timed in a row.
        rounds: repetitions.
        report: takes a line before each stage.

    Raises:
        ValueError: for what cannot work, before any image is read.
    """
    _check(recipe, steps, rounds)
    training = recipe.training
    shares = resolution_schedule(recipe.views, training.warmup_fraction).shares()
    images = load_images(recipe.data, training.device)
    stages = []
    for resolution, share in shares.items():
        report(f"measuring at {resolution} px …")
        stages.append(StageSpeed(resolution, share, _stage_seconds(recipe, images, resolution, steps, rounds)))
    return Benchmark(
        recipe=Path(recipe.source).name,
        method=recipe.model.method,
        backbone=recipe.model.backbone,
        device=_device_name(training.device),
        threads=torch.get_num_threads(),
        workers=training.dataloader_num_workers,
        cache=recipe.data.cache,
        torch=torch.__version__,
        batch_size=training.train_batch_size,
        steps=steps,
        rounds=rounds,
        stages=tuple(stages),
    )


def _check(recipe: Recipe, steps: int, rounds: int) -> None:
    for name, value in (("steps", steps), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it is a number from 1 on, such as 5")
    if recipe.training.world_size > 1:
        raise ValueError(f"benchmark runs in {recipe.training.world_size} processes; start it without a launcher")
    check_backbone(recipe.model.backbone)


def _stage_seconds(recipe: Recipe, images: Images, resolution: int, steps: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step by name, at one resolution."""
    warmup = 2 + 2 * recipe.training.dataloader_num_workers  # batches that the workers have ready are no speed
    with tempfile.TemporaryDirectory() as folder:
        training = dataclasses.replace(
            recipe.training,
            output_dir=folder,
            max_steps=rounds * (warmup + steps),
            gradient_accumulation_steps=1,
            resume_from_checkpoint=None,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            push_to_hub=False,
            energy_country=None,
            disable_tqdm=True,
            on_divergence="warn",
        )
        trainer = build_trainer(dataclasses.replace(recipe, training=training), images)
        for callback in (SuperProgressiveCallback, EvaluateEveryCallback, StopOnSignalCallback):
            trainer.remove_callback(callback)
        trainer.views.resolution = resolution
        trainer.views.magnitude = magnitude_schedule(recipe.views)(0.5)
        watch = RoundsCallback(trainer, warmup, steps)
        trainer.add_callback(watch)
        trainer.train()
        watch.batches.close()
    return {name: statistics.median(seconds) for name, seconds in watch.seconds.items()}


class RoundsCallback(TrainerCallback):
    """Times steps of a training in rounds, and between two rounds the parts of a step and the bare one.

    Args:
        warmup: steps of a round before its timed ones.
        steps: timed steps of a round.
    """

    def __init__(self, trainer: SSLTrainer, warmup: int, steps: int):
        self.trainer, self.warmup, self.steps = trainer, warmup, steps
        self.watch = Stopwatch(trainer.args.device)
        self.kornia = Views(dataclasses.replace(trainer.views.args, view_executor="kornia"))
        self.batches = endless(trainer.get_train_dataloader())
        self.seconds: dict[str, list[float]] = defaultdict(list)
        """Of a step, by name, one a round."""

    def on_step_end(self, args, state, control, **kwargs):
        position = state.global_step % (self.warmup + self.steps)
        if position == self.warmup:
            self.begin = self.watch.now()
        elif position == 0:
            self.seconds["whole"].append((self.watch.now() - self.begin) / self.steps)
            self._between()

    def _between(self) -> None:
        images = self._decode()
        for timed in (False, True):
            self.watch.seconds.clear()
            for _ in range(self.steps if timed else 1):
                made = self._make(images)
                self._train(made, self.watch.part)
        for name, seconds in self.watch.seconds.items():
            self.seconds[name].append(seconds / self.steps)
        selections = (False, True) if made.small is not None else (False,)
        for name, selection in zip(("bare", "limit"), selections, strict=False):
            self._bare(made, 1, selection)
            begin = self.watch.now()
            self._bare(made, self.steps, selection)
            self.seconds[name].append((self.watch.now() - begin) / self.steps)
        if made.small is None:
            self.seconds["limit"].append(self.seconds["bare"][-1])

    def _decode(self) -> Tensor:
        for _ in range(self.warmup):
            images = self._next_images()
        begin = self.watch.now()
        for _ in range(self.steps):
            images = self._next_images()
        self.seconds["decode"].append((self.watch.now() - begin) / self.steps)
        return images

    def _next_images(self) -> Tensor:
        return self.trainer.feed(next(self.batches))["image"]

    def _make(self, images: Tensor) -> Made:
        """The views of a batch by the trainer's executor, and again by kornia's."""
        trainer, augment = self.trainer, self.trainer.hard_augment
        compared = augment.args.has_selection_pass
        with self.watch.part("views"):
            candidates = augment.views.sample_all(images, augment.kinds)
            small = list(augment.small_views(images, candidates)) if compared else None
        with self.watch.part("selection") if compared else nullcontext():
            chosen = trainer.choose(candidates, small or [])
        with self.watch.part("views"):
            views = trainer.render(images, chosen)
        with self.watch.part("kornia"):
            if compared:
                self.kornia.render_all(images, candidates, augment.args.selection_resolution)
            self.kornia.render_all(images, [chosen.first, chosen.second], trainer.views.resolution)
        return Made(candidates, small, views)

    def _train(self, made: Made, part: Callable[[str], AbstractContextManager]) -> None:
        trainer = self.trainer
        with part("forward"), trainer.compute_loss_context_manager():
            loss = trainer.model(**made.views)["loss"].mean()
        with part("backward"):
            trainer.accelerator.backward(loss)
            trainer.model.after_backward()
        with part("optimizer"):
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            trainer.model.after_step()

    def _bare(self, made: Made, steps: int, selection: bool) -> None:
        for _ in range(steps):
            if selection:
                self.trainer.choose(made.candidates, made.small or [])
            self._train(made, lambda name: nullcontext())


class Made(NamedTuple):
    """What a step makes of its images: the candidates, their small views where there are any, the views that train."""

    candidates: list[ViewParams]
    small: list[Tensor] | None
    views: dict[str, Tensor]


class Stopwatch:
    """Wall-clock of a device: every reading waits until the device has done all that it was given."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `seconds[name]`."""
        begin = self.now()
        yield
        self.seconds[name] += self.now() - begin


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
