"""Faults that the first steps of a run show for certain: equal images, equal views, a state that does not move."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_essl.data import NO_LABEL, ImageDataset
from hf_essl.methods import SSLModel

logger = logging.getLogger(__name__)

MOVED_BY = 10  # optimizer steps after which every part of the model must have changed


class SanityCallback(TrainerCallback):
    """Warns about a run that cannot learn; a run waits for its device twice, at the first step and at the tenth.

    Args:
        run: the trainer, whose model may be replaced.
    """

    def __init__(self, run: Any):
        self.run = run
        self._before: dict[str, Tensor] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = {}
        if state.global_step == 0:
            self._before = {name: value.detach().clone() for name, value in moving_parts(self.run.model).items()}
            self._say(one_class(self.run.evaluation_images), state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == MOVED_BY and self._before:
            now = moving_parts(self.run.model)
            still = [name for name, value in self._before.items() if torch.equal(value, now[name])]
            self._before = {}
            if still:
                self._say(
                    f"{' and '.join(still)} did not change in {MOVED_BY} steps; the run cannot learn as meant", state
                )

    def look(self, images: Tensor, views: Mapping[str, Tensor], state: Any) -> None:
        """Checks the images, uint8 N x 3 x S x S, and the two views of the first step."""
        if len(images) > 1 and bool((images == images[:1]).all()):
            self._say(f"all {len(images)} images of the first batch are equal; check the data set", state)
        elif bool(torch.isclose(views["first"], views["second"], atol=1e-3).all()):
            self._say("the two views of every image are equal; raise the magnitude, or check the augmentations", state)

    def _say(self, text: str | None, state: Any) -> None:
        if text and state.is_world_process_zero:
            logger.warning("step %d: %s", state.global_step, text)


def moving_parts(model: SSLModel) -> dict[str, Tensor]:
    """A part of the student, of the teacher, and the method's own state (queue, center), by name."""
    parts = {"the student": next(p for p in model.backbone.parameters() if p.requires_grad)}
    if model.has_teacher:
        trained = next(name for name, p in model.backbone.named_parameters() if p.requires_grad)
        parts["the teacher"] = model.teacher.backbone.get_parameter(trained)  # type: ignore[union-attr, operator]
    kept = model.state_dict().keys()
    own = {n: b for n, b in model.named_buffers(recurse=False) if n in kept and b.is_floating_point()}
    return parts | {f"the {name}": value for name, value in own.items()}


def one_class(images: ImageDataset | None) -> str | None:
    """A line for evaluation images whose labels are all the same."""
    labels = getattr(images, "labels", None) if getattr(images, "has_known_labels", False) else None
    if labels is None or len(labels[labels != NO_LABEL].unique()) != 1:
        return None
    return "all labels of the evaluation images are one class, so the accuracy says nothing; check the labels"
