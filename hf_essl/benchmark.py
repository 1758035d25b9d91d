"""How fast a recipe trains, stage by stage: the parts of a step, the whole step, and the bare step as the limit."""

import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_essl.data import Images, load_images
from hf_essl.pretrain import build_trainer
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import describe_device
from hf_essl.reporting.throughput import Benchmark, StageSpeed
from hf_essl.schedules import Curriculum, Size, SuperProgressiveCallback
from hf_essl.selection import Plan, Selection
from hf_essl.trainer import SSLTrainer
from hf_essl.training.callbacks import EvaluateEveryCallback, StopOnSignalCallback
from hf_essl.training.progress import ProgressBarCallback
from hf_essl.training.step import endless, run_step
from hf_essl.views import Views

HALFWAY = 0.5  # progress of the run that is measured: its magnitude, and the state of the method's own schedules


def benchmark(
    recipe: Recipe, steps: int = 5, rounds: int = 3, report: Callable[[str], None] = lambda line: None
) -> Benchmark:
    """Trains a few steps at each size of a recipe's views and times them; nothing is saved.

    The limit is the network's own work on views that are already there. Each round times the whole training, the parts
    and the limit alternately, after warm-up steps, so that a drift in the machine's speed affects all alike; the
    median of the rounds is reported.

    `report` gets a line before each stage. Raises ValueError for anything that cannot work, before any image is read.
    """
    _check(recipe, steps, rounds)
    training = recipe.training
    curriculum = Curriculum.from_args(recipe.views, training)
    images = load_images(recipe.data, training.device)
    stages = []
    for size, share in curriculum.shares().items():
        report(f"measuring at {size} …")
        stages.append(StageSpeed(*size, share, _stage_seconds(recipe, images, size, steps, rounds)))
    return Benchmark(
        recipe=Path(recipe.source).name,
        method=recipe.model.method,
        backbone=recipe.model.backbone,
        device=describe_device(training.device),
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
            raise ValueError(f"{name} is {value}; it must be at least 1, such as 5")
    if recipe.training.world_size > 1:
        raise ValueError(f"benchmark runs in {recipe.training.world_size} processes; start it without a launcher")
    recipe.check_network()


def _stage_seconds(recipe: Recipe, images: Images, size: Size, steps: int, rounds: int) -> dict[str, float]:
    """Median seconds per step of each part, at one size of the curriculum."""
    warmup = 2 + 2 * recipe.training.dataloader_num_workers  # the workers' prefetched batches do not count
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
            disable_tqdm=True,
            on_divergence="warn",
        )
        trainer = build_trainer(dataclasses.replace(recipe, training=training), images)
        for callback in (SuperProgressiveCallback, EvaluateEveryCallback, StopOnSignalCallback, ProgressBarCallback):
            trainer.remove_callback(callback)
        trainer.views.resolution, trainer.views.tokens = size
        trainer.views.magnitude = trainer.curriculum.magnitude(HALFWAY)
        watch = RoundsCallback(trainer, warmup, steps)
        trainer.add_callback(watch)
        trainer.train()
        watch.batches.close()
    return {name: statistics.median(seconds) for name, seconds in watch.seconds.items()}


class Made(NamedTuple):
    """What a step makes from its images: the plan of the selection, and the views that train."""

    plan: Plan
    views: dict[str, Tensor]


class RoundsCallback(TrainerCallback):
    """Times training steps in rounds and, between rounds, the parts of a step and the bare step.

    A round has `warmup` steps and then `steps` timed ones.
    """

    def __init__(self, trainer: SSLTrainer, warmup: int, steps: int):
        self.trainer, self.warmup, self.steps = trainer, warmup, steps
        self.watch = Stopwatch(trainer.args.device)
        self.kornia = Views(dataclasses.replace(trainer.views.args, view_executor="kornia"))
        self.batches = endless(trainer.get_train_dataloader())
        self.seconds: dict[str, list[float]] = defaultdict(list)  # per step, by name of the part; one per round

    def on_step_end(self, args, state, control, **kwargs):
        position = state.global_step % (self.warmup + self.steps)
        if position == self.warmup:
            self.begin = self.watch.now()
        elif position == 0:
            self.seconds["whole"].append((self.watch.now() - self.begin) / self.steps)
            self._between()

    def _between(self) -> None:
        batch = self._decode()
        with self.trainer.show_images(batch):
            self._parts(batch)

    def _parts(self, batch: dict[str, Any]) -> None:
        for timed in (False, True):
            self.watch.seconds.clear()
            for _ in range(self.steps if timed else 1):
                made = self._make(batch)
                self._train(made.views, self.watch.part)
        for name, seconds in self.watch.seconds.items():
            self.seconds[name].append(seconds / self.steps)
        selections = (False, True) if made.plan.small is not None else (False,)
        for name, selection in zip(("bare", "limit"), selections, strict=False):
            self._bare(made, 1, selection)
            begin = self.watch.now()
            self._bare(made, self.steps, selection)
            self.seconds[name].append((self.watch.now() - begin) / self.steps)
        if made.plan.small is None:
            self.seconds["limit"].append(self.seconds["bare"][-1])

    def _decode(self) -> dict[str, Any]:
        for _ in range(self.warmup):
            batch = self._next_batch()
        begin = self.watch.now()
        for _ in range(self.steps):
            batch = self._next_batch()
        self.seconds["decode"].append((self.watch.now() - begin) / self.steps)
        return batch

    def _next_batch(self) -> dict[str, Any]:
        return self.trainer.feed(next(self.batches))

    def _make(self, batch: dict[str, Any]) -> Made:
        """The views of a batch with the trainer's executor, and again with kornia's."""
        trainer, augment, images = self.trainer, self.trainer.hard_augment, batch["image"]
        with self.watch.part("candidates" if augment.args.needs_selection_pass else "views"):
            plan = augment.plan(images, batch["aspect"])
            if plan.small is not None and not isinstance(plan.small, Tensor):  # renders them now
                plan = plan._replace(small=list(plan.small))
        with self.watch.part("selection") if plan.small is not None else nullcontext():
            chosen = self._select(plan)
        with self.watch.part("views"):
            views = trainer.render(images, chosen)
        with self.watch.part("kornia"):
            if plan.small is not None:
                self.kornia.render_all(images, plan.candidates, augment.args.selection_resolution)
            chosen.render(self.kornia, images, trainer.views.resolution)
        return Made(plan, views)

    def _select(self, plan: Plan) -> Selection:
        augment, model = self.trainer.hard_augment, self.trainer.model
        with self.trainer.accelerator.autocast():
            return augment.pair(plan, augment.compare(model, plan))

    def _train(self, views: dict[str, Tensor], timed: Callable[[str], AbstractContextManager]) -> None:
        trainer = self.trainer
        run_step(
            trainer.model,
            views,
            trainer.optimizer,
            progress=HALFWAY,
            epoch=HALFWAY * trainer.args.num_train_epochs,
            autocast=trainer.accelerator.autocast,
            backward=trainer.accelerator.backward,
            timed=timed,
        )

    def _bare(self, made: Made, steps: int, selection: bool) -> None:
        for _ in range(steps):
            if selection:
                self._select(made.plan)
            self._train(made.views, lambda name: nullcontext())


class Stopwatch:
    """Wall-clock of a device: each reading waits until the device has finished its work."""

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
