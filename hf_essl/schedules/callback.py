"""The only writer of the views' resolution and magnitude."""

from typing import Protocol

from transformers import TrainerCallback

from hf_essl.schedules.curriculum import Curriculum


class HasCurriculum(Protocol):
    """What the callback sets: `hf_essl.Views`, or anything with these two attributes."""

    resolution: int
    magnitude: float


class SuperProgressiveCallback(TrainerCallback):
    """Sets `views.resolution` and `views.magnitude` before every optimizer step (Sec. 3.2, Algorithm 1).

    Both are functions of `global_step / max_steps`, so the callback has no state and a resumed run needs none. (On
    resume, Trainer rebuilds a callback that has state, and its reference to the views would be lost.)

    Args:
        views: the object that renders the views.
        curriculum: resolution and magnitude by progress.
    """

    def __init__(self, views: HasCurriculum, curriculum: Curriculum):
        self.views = views
        self.curriculum = curriculum

    def on_step_begin(self, args, state, control, **kwargs):
        progress = state.global_step / state.max_steps
        self.views.resolution = self.curriculum.resolution(progress)
        self.views.magnitude = self.curriculum.magnitude(progress)
