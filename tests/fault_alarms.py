"""Alarms: sabotaged runs that must be told within 100 steps, and healthy ones that must raise none.

`python -m tests.fault_alarms` runs 30 of each; a run that did not hold prints a line.
"""

import itertools
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

from hf_essl.common import Diverged
from hf_essl.data import CachedImages
from hf_essl.methods import METHODS
from tests.helpers import patches, small_trainer

STEPS = 100
WATCHED = ("hf_essl.training.alarms", "hf_essl.training.sanity")


def rate_times_30(trainer):
    trainer.args.learning_rate *= 30


def rate_times_1000(trainer):
    trainer.args.learning_rate *= 1000


def no_predictor(trainer):
    trainer.model.predictor = nn.Identity()


def no_stopped_gradient(trainer):
    trainer.model.targets = lambda views, keys: keys


def still_teacher(trainer):
    trainer.model.teacher.ema_update = lambda *args: None


def tiny_temperature(trainer):
    trainer.model.temperature = 0.001


def no_augmentation(trainer):
    def same(images, params, size=None):
        view = torch.nn.functional.interpolate(images.float() / 255, size=size or trainer.views.resolution)
        return [view.clone() for _ in params]

    trainer.views.render_all = same


def frozen_center(trainer):
    trainer.model.center.lerp_ = lambda *args: None
    center = trainer.model.center.clone()
    step = trainer.model.after_step

    def after_step():
        step()
        trainer.model.center.data.copy_(center)

    trainer.model.after_step = after_step


def frozen_student(trainer):
    trainer.model.backbone.register_forward_hook(lambda module, inputs, output: output.detach())


def equal_images(trainer):
    trainer.train_dataset = repeated(trainer.train_dataset)


def equal_labels(trainer):
    trainer.eval_dataset.labels.fill_(1)


def infinite_weight(trainer):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 20:
                next(model.backbone.parameters()).data[0] = torch.inf

    trainer.add_callback(Spoil())


def constant_embedding(trainer):
    trainer.model.projector[-1].register_forward_hook(lambda module, inputs, output: 0.001 * output + 1)


def repeated(images: CachedImages) -> CachedImages:
    return images.take([0] * len(images))


ALL = tuple(METHODS)
SABOTAGE: list[tuple[Callable, tuple[str, ...]]] = [
    (rate_times_1000, ALL),
    (no_augmentation, ALL),
    (equal_images, ("simsiam", "byol", "dino")),
    (equal_labels, ("simsiam", "mocov2")),
    (infinite_weight, ("simsiam", "simclr", "lejepa")),
    (frozen_student, ("byol", "simclr")),
    (still_teacher, ("byol", "mocov2", "dino")),
    (frozen_center, ("dino",)),
    (tiny_temperature, ("simclr", "mocov2")),
    (no_stopped_gradient, ("simsiam",)),
    (no_predictor, ("simsiam",)),
    (constant_embedding, ("simsiam", "byol")),
]


class Heard(logging.Handler):
    """Collects the warnings of the alarms."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def alarms_of(method: str, seed: int, sabotage: Callable | None) -> list[str]:
    """What a run of `STEPS` steps says, with the reason if it was stopped."""
    heard = Heard()
    for name in WATCHED:
        logging.getLogger(name).addHandler(heard)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"num_train_epochs": STEPS / 6, "warmup_epochs": 3, "learning_rate": 0.05, "seed": seed}
        trainer = small_trainer(
            Path(folder) / "run", method=method, held=patches("validation", 32), knn_every_epochs=0,
            views={"num_views": 2, "selection": "none"}, **settings,
        )  # fmt: skip
        try:
            if sabotage:
                sabotage(trainer)
            trainer.train()
        except Diverged as error:
            heard.lines.append(str(error))
        finally:
            for name in WATCHED:
                logging.getLogger(name).removeHandler(heard)
    return heard.lines


def run(count: int) -> tuple[int, int]:
    """Half of the runs are sabotaged, half are healthy."""
    sabotaged = [(method, change) for change, methods in SABOTAGE for method in methods]
    held = 0
    for method, change in sabotaged[: count // 2]:
        told = bool(alarms_of(method, 0, change))
        held += told
        if not told:
            print(f"{method}: {change.__name__} was not told", file=sys.stderr)
    healthy = list(itertools.product(range(-(-count // 12)), METHODS))[: count - count // 2]
    for seed, method in healthy:
        lines = alarms_of(method, seed, None)
        held += not lines
        if lines:
            print(f"{method}, seed {seed}: a healthy run said {lines[0]}", file=sys.stderr)
    return min(len(sabotaged), count // 2) + len(healthy), held


if __name__ == "__main__":
    print("tried {}, held {}".format(*run(60)))
