"""The one writer of the views' resolution and magnitude."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from transformers import TrainerCallback

from hf_essl.arguments import SSLTrainingArguments, ViewArguments
from hf_essl.schedules.resolution import magnitude_schedule, resolution_schedule


class HasCurriculum(Protocol):
    """What the callback steers: `hf_essl.Views`, or anything with these two attributes."""

    resolution: int
    magnitude: float


class SuperProgressiveCallback(TrainerCallback):
    """Sets `views.resolution` and `views.magnitude` before every optimizer step (Sec. 3.2, Algorithm 1).

    Both follow from `global_step / max_steps`, so the callback has no state and a resumed run needs none. (Trainer
    would build a callback with state anew on resume, and its reference to the views would be lost.)

    Args:
        views: the object that renders the views.
        resolution: pixels by progress in [0, 1).
        magnitude: augmentation magnitude by progress in [0, 1).
    """

    def __init__(self, views: HasCurriculum, resolution: Callable[[float], int], magnitude: Callable[[float], float]):
        self.views = views
        self.resolution = resolution
        self.magnitude = magnitude

    @classmethod
    def from_args(
        cls, views: HasCurriculum, view_args: ViewArguments, training_args: SSLTrainingArguments
    ) -> SuperProgressiveCallback:
        """The callback for a recipe's groups. Raises ValueError as `resolution_schedule` does."""
        resolution = resolution_schedule(view_args, training_args.warmup_fraction)
        return cls(views, resolution, magnitude_schedule(view_args))

    def on_step_begin(self, args, state, control, **kwargs):
        progress = state.global_step / state.max_steps
        self.views.resolution = self.resolution(progress)
        self.views.magnitude = self.magnitude(progress)
