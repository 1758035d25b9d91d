"""The only writer of the views' resolution, magnitude and share of patch tokens."""

from transformers import TrainerCallback

from hf_essl.schedules.curriculum import Curriculum
from hf_essl.views import Views


class SuperProgressiveCallback(TrainerCallback):
    """Sets resolution, magnitude and tokens of the views before every optimizer step (Sec. 3.2, Algorithm 1).

    All are functions of `global_step / max_steps`, so the callback has no state and a resumed run needs none. (On
    resume, Trainer rebuilds a callback that has state, and its reference to the views would be lost.)
    """

    def __init__(self, views: Views, curriculum: Curriculum):
        self.views, self.curriculum = views, curriculum

    def on_step_begin(self, args, state, control, **kwargs):
        progress = state.global_step / state.max_steps
        self.views.resolution, self.views.tokens = self.curriculum.size(progress)
        self.views.magnitude = self.curriculum.magnitude(progress)
