"""What a run costs in floating-point operations, in the paper's convention and as counted, and what it saves.

paper:    two operations per multiply-accumulate (MAC) of the backbone's forward pass at r_max, scaled with r^2, and a
          backward pass counted as one forward pass: 8 MACs per image with two views, 12 with a teacher. The result is
          within 1.5 % of the costs that the paper prints (Tables 1 and 2), whose forward pass is slightly larger.
counted:  operations of torch's `FlopCounterMode` in convolutions and matrix products, heads and loss included, with
          the real backward pass, about twice the forward pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_essl.compat import without_process_group
from hf_essl.config import ViewArguments
from hf_essl.methods import SSLModel
from hf_essl.schedules import Curriculum

STEP_TO_FORWARD = 6
"""C of Eq. 11, a training step over the forward pass of one view: two views, forward and backward (two forward)."""


class StepFlops(NamedTuple):
    """Floating-point operations of one image of a step, both of its views."""

    forward: float
    """Of the student."""
    backward: float
    teacher: float
    """Forward pass of the momentum teacher, where there is one."""
    selection: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.teacher + self.selection


@dataclass(frozen=True)
class Cost:
    """Cost of a run, in petaFLOPs by both conventions, and what it saves at an equal number of steps.

    A speed-up is the cost of the plain recipe (r_max throughout, two views, no selection) over that of this one, at
    the same steps. A run that is shorter than its baseline gains the ratio of their steps on top.
    """

    steps: int
    images_per_step: int
    paper_petaflops: float
    counted_petaflops: float
    counted_forward_petaflops: float
    counted_backward_petaflops: float
    counted_teacher_petaflops: float
    counted_selection_petaflops: float
    paper_speedup: float
    counted_speedup: float
    paper_selection_overhead: float
    """Cost of the selection pass over that of the same run without it, in percent (Table 8)."""


class FlopCounter:
    """Counts the operations of a model's step at any resolution, without touching the model or a random state.

    The count runs on a copy without memory (the meta device), seconds for the first step at each resolution, then
    cached. It counts one process, in train mode, on a batch of two; a loss that grows faster than the batch (the
    pairs of SimCLR) is counted at that size, a negligible share.

    Args:
        model: of the `SSLModel` contract.
        num_views: m, views that the selection pass compares.
        selection_resolution: r_sel, their side in pixels; None where there is no such pass.
    """

    def __init__(self, model: SSLModel, num_views: int = 2, selection_resolution: int | None = None):
        self.num_views = num_views
        self.selection_resolution = selection_resolution
        self._model = _meta_copy(model).train()
        self._steps: dict[int, StepFlops] = {}  # without a selection pass
        self._forward: dict[tuple[str, int], float] = {}

    @classmethod
    def of(cls, model: SSLModel, view_args: ViewArguments) -> FlopCounter:
        """The counter of a model under these views."""
        return cls(model).under(view_args)

    def under(self, view_args: ViewArguments) -> FlopCounter:
        """A counter of the same model under other views, which shares what has been counted."""
        other = copy.copy(self)
        other.num_views = view_args.num_views
        other.selection_resolution = view_args.selection_resolution if view_args.needs_selection_pass else None
        return other

    def step(self, resolution: int) -> StepFlops:
        """Operations of an image at `resolution` pixels: forward and backward of two views, and the selection pass."""
        if resolution not in self._steps:
            self._steps[resolution] = self._count_step(resolution)
        small = self.selection_resolution
        selection = 0.0 if small is None else self.num_views * self._count_forward("embed", small)
        return self._steps[resolution]._replace(selection=selection)

    def backbone_macs(self, resolution: int) -> float:
        """Multiply-accumulates of the backbone's forward pass on one view of `resolution` pixels."""
        return self._count_forward("backbone", resolution) / 2

    def _count_step(self, resolution: int) -> StepFlops:
        with _detached(), torch.enable_grad():
            with FlopCounterMode(display=False) as forward:
                loss = self._model(_views(resolution), _views(resolution))["loss"].mean()
            with FlopCounterMode(display=False) as backward:
                loss.backward()
            self._model.zero_grad(set_to_none=True)
        teacher = sum(forward.get_flop_counts().get(f"{type(self._model).__name__}.teacher", {}).values()) / _BATCH
        student = forward.get_total_flops() / _BATCH - teacher
        return StepFlops(student, backward.get_total_flops() / _BATCH, teacher, 0.0)

    def _count_forward(self, part: str, resolution: int) -> float:
        """Operations of one view through `backbone` or `embed`, without gradient."""
        if (part, resolution) not in self._forward:
            with _detached(), torch.no_grad(), FlopCounterMode(display=False) as counter:
                getattr(self._model, part)(_views(resolution))
            self._forward[part, resolution] = counter.get_total_flops() / _BATCH
        return self._forward[part, resolution]


def estimate_cost(
    model: SSLModel,
    view_args: ViewArguments,
    curriculum: Curriculum,
    steps: int,
    images_per_step: int,
    counter: FlopCounter | None = None,
) -> Cost:
    """Predicts what a run costs, from its model and its arguments alone.

    Speed-ups are the true ratio of the two sums, L r_max^2 / sum_t r_t^2 for the resolution schedule alone. Eq. 9 as
    printed, the mean of (r_max / r_t)^2, averages the speed-ups instead: more than the run saves.

    Args:
        model: of the `SSLModel` contract.
        curriculum: the resolution of each step.
        steps: L, optimizer steps of the run.
        images_per_step: images of all processes and accumulated batches.
        counter: of this model and these views, where there is one that has counted already.

    Raises:
        ValueError: for steps or images_per_step below 1.
    """
    if steps < 1 or images_per_step < 1:
        raise ValueError(f"steps and images_per_step are {steps} and {images_per_step}; both must be at least 1")
    counter = counter or FlopCounter.of(model, view_args)
    steps_at = curriculum.resolution.steps(steps)
    r_max, peta_images = view_args.resolution, images_per_step / 1e15
    counted = [sum(n * counter.step(r)[part] for r, n in steps_at.items()) * peta_images for part in range(4)]
    plain_step = counter.step(r_max)
    # what a step costs on average, in units of the plain one, with the selection pass and without
    paper_share = sum(n * _paper_share(r, r_max, counter) for r, n in steps_at.items()) / steps
    unselected_share = sum(n * (r / r_max) ** 2 for r, n in steps_at.items()) / steps
    paper_plain = _paper_step(counter.backbone_macs(r_max), model.cost_factor()) * steps * peta_images
    return Cost(
        steps=steps,
        images_per_step=images_per_step,
        paper_petaflops=paper_plain * paper_share,
        counted_petaflops=sum(counted),
        counted_forward_petaflops=counted[0],
        counted_backward_petaflops=counted[1],
        counted_teacher_petaflops=counted[2],
        counted_selection_petaflops=counted[3],
        paper_speedup=1 / paper_share,
        counted_speedup=(plain_step.total - plain_step.selection) * steps * peta_images / sum(counted),
        paper_selection_overhead=100 * (paper_share / unselected_share - 1),
    )


def steps_per_epoch(num_images: int, images_per_step: int, drop_last: bool = True) -> int:
    """Optimizer steps of a pass over the images. Raises ValueError where the images fill not one step."""
    steps = num_images // images_per_step if drop_last else math.ceil(num_images / images_per_step)
    if steps < 1:
        raise ValueError(f"{num_images} images make no step of {images_per_step}; lower the batch, or keep the last")
    return steps


_BATCH = 2  # the smallest that BatchNorm over vectors trains on


def _paper_step(macs: float, cost_factor: float) -> float:
    """Operations of one image at r_max: 2 views x (forward + backward as one forward) x 2 per MAC, x the method's."""
    return 2 * 2 * 2 * cost_factor * macs


def _paper_share(resolution: int, r_max: int, counter: FlopCounter) -> float:
    """A step at `resolution` in units of a plain step at r_max: quadratic in it, and 1 / M_ha of Eq. 11."""
    share = (resolution / r_max) ** 2
    if counter.selection_resolution is None:
        return share
    overhead = counter.num_views * counter.selection_resolution**2 / (STEP_TO_FORWARD * resolution**2)
    return share * (1 + overhead)


def _views(resolution: int) -> torch.Tensor:
    return torch.empty(_BATCH, 3, resolution, resolution, device="meta")


def _meta_copy(model: SSLModel) -> SSLModel:
    """A deep copy whose parameters and buffers have shapes and no memory."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()
    }
    memo.update({id(b): b.detach().to("meta") for b in model.buffers()})  # what memo holds is not copied again
    return copy.deepcopy(model, memo)


@contextmanager
def _detached() -> Iterator[None]:
    """Keeps a count to itself: the CPU's random state restored, nothing compiled, and no process group to be seen.

    Collectives and SyncBatchNorm refuse meta tensors, and a process that counts alone would wait for the others.
    """
    with without_process_group(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
        yield
