"""The floating-point operations of a run, in two conventions, and the predicted speed-up.

paper:    two operations per multiply-accumulate (MAC) of the backbone's forward pass at r_max, scaled with r^2, and a
          backward pass counted as one forward pass: 8 MACs per image with two views, 12 with a teacher. This is within
          1.5 % of the paper's costs (Tables 1 and 2), whose forward pass is slightly larger. The paper has none of
          these: a ViT that keeps a share of its patch tokens is scaled with this share too, a frozen teacher adds its
          own forward passes at its own resolution (one for each image, if it sees whole images), and a local view of
          s pixels, which no teacher sees, adds 4 MACs, scaled with s^2.
counted:  operations in convolutions and matrix products by torch's `FlopCounterMode`, heads and loss included, with
          the real backward pass, about twice the forward pass.
"""

import copy
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_essl.config import ViewArguments
from hf_essl.config.fields import Count, checked
from hf_essl.methods import SSLModel
from hf_essl.methods.meta import BATCH, isolated, meta_copy, meta_views
from hf_essl.methods.tokens import keep_tokens, patch_count
from hf_essl.schedules import Curriculum, Size
from hf_essl.views.tokens import kept_count

STEP_TO_FORWARD = 6  # C of Eq. 11: a training step of two views over the forward pass of one


class StepFlops(NamedTuple):
    """Floating-point operations of one step, per image."""

    forward: float  # of the student, both views
    backward: float
    teacher: float
    selection: float
    local: float = 0.0  # local views, forward and backward

    @property
    def total(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class Cost:
    """Cost of a run in petaFLOPs, in both conventions, and its speed-up over the plain recipe at the same steps.

    The plain recipe uses r_max throughout, two views (and its local views) and no selection. Fewer steps multiply the
    speed-up.
    """

    steps: int
    images_per_step: int
    paper_petaflops: float
    counted_petaflops: float
    counted_forward_petaflops: float
    counted_backward_petaflops: float
    counted_teacher_petaflops: float
    counted_selection_petaflops: float
    counted_local_petaflops: float
    counted_once_petaflops: float  # of the teacher's part, what comes before the first step
    paper_speedup: float
    counted_speedup: float
    paper_selection_overhead: float  # additional cost of the selection pass in percent (Table 8)


PEAK_TFLOPS = {  # dense, in 16 bits, of the vendors' data sheets; the first name that the device's contains
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "A40": 150, "A10": 125, "L40S": 362, "L4": 121,
    "V100": 125, "T4": 65, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """The FLOP/s that a GPU can reach in 16 bits; None for a CPU and for a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


class FlopCounter:
    """Counts the operations of a model's step at any resolution, without changing the model or a random state.

    It runs a copy on the meta device, in train mode, with a batch of two; results are cached. A loss that grows faster
    than the batch (SimCLR's pairs) is counted at this size, where its share is negligible.
    """

    def __init__(self, model: SSLModel):
        self.view_args = ViewArguments()  # no selection pass
        self._model = meta_copy(model).train()
        if (teacher := self._model.image_teacher) is not None:
            self._model.image_targets = torch.empty(BATCH, teacher.num_features, device="meta")
        self._step, self._forward = cache(self._count_step), cache(self._count_forward)  # shared with copies

    @classmethod
    def of(cls, model: SSLModel, view_args: ViewArguments) -> "FlopCounter":
        """The counter of a model with these views."""
        return cls(model).under(view_args)

    def under(self, view_args: ViewArguments) -> "FlopCounter":
        """A counter of the same model with other views; both share the cached results."""
        other = copy.copy(self)
        other.view_args = view_args
        return other

    def step(self, resolution: int, tokens: float = 1.0) -> StepFlops:
        """Operations per image of a step with views of `resolution` pixels and this share of their patch tokens.

        The local views beside them keep all tokens.
        """
        args = self.view_args
        step = self._step(resolution, tokens, args.teacher_tokens)
        if args.local_views:
            local = args.local_views, args.local_size(resolution)
            step = step._replace(local=self._step(resolution, tokens, args.teacher_tokens, *local).total - step.total)
        if not args.needs_selection_pass:
            return step
        small_view = self._forward("embed", args.selection_resolution, args.selection_tokens)
        return step._replace(selection=args.num_views * small_view)

    def whole_image(self) -> float:
        """Operations of the `image_teacher`, which sees each training image once; 0 without one."""
        teacher = self._model.image_teacher
        return 0.0 if teacher is None else self._forward("image_teacher", teacher.side, 1.0)

    def backbone_macs(self, resolution: int) -> float:
        """Multiply-accumulates of the backbone's forward pass on one view of `resolution` pixels, with all tokens."""
        return self._forward("backbone", resolution, 1.0) / 2

    def _count_step(
        self, resolution: int, tokens: float, teacher_tokens: float, local_views: int = 0, local_size: int = 0
    ) -> StepFlops:
        views = [meta_views(resolution), meta_views(resolution)]
        kept, teacher_kept = self._kept(resolution, tokens), self._kept(resolution, teacher_tokens)
        seen = {"tokens": None if kept is None else torch.stack([kept, kept], dim=1), "teacher_tokens": teacher_kept}
        if local_views:
            seen["local"] = torch.stack([meta_views(local_size)] * local_views)
        with isolated(), torch.enable_grad():
            with _count() as forward:
                loss = self._model(*views, **seen)["loss"].mean()
            with _count() as backward:
                loss.backward()
            self._model.zero_grad(set_to_none=True)
        teacher = sum(forward.get_flop_counts().get(f"{type(self._model).__name__}.teacher", {}).values()) / BATCH
        student = forward.get_total_flops() / BATCH - teacher
        return StepFlops(student, backward.get_total_flops() / BATCH, teacher, 0.0)

    def _count_forward(self, part: str, resolution: int, tokens: float) -> float:
        """Operations of one view in `backbone`, `embed` or `image_teacher`.

        With gradient: torch's counter fails without, on a parameter that is expanded, as in attention pooling.
        """
        kept = self._kept(resolution, tokens)
        counter = _count()
        with isolated(), torch.enable_grad(), keep_tokens(self._model.backbone, kept), counter:
            getattr(self._model, part)(meta_views(resolution))
        return counter.get_total_flops() / BATCH

    def _kept(self, resolution: int, share: float) -> Tensor | None:
        """Patch tokens as a ViT gets them, B x K, without values; None for all."""
        if share >= 1:
            return None
        count = kept_count(patch_count(self._model.backbone, resolution), share)
        return torch.empty(BATCH, count, dtype=torch.int64, device="meta")


def _count() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    grad: list[int], images: list[int], weight: list[int], *others: Any, out_shape: Any = None
) -> int:
    """Both gradients cost as much as the forward pass; torch counts the weights' once more for each group."""
    transposed, output_mask = others[4], others[7]
    places = images if transposed else grad
    forward = 2 * images[0] * math.prod(places[2:]) * math.prod(weight)
    return forward * sum(output_mask[:2])


@checked
def estimate_cost(
    model: SSLModel,
    view_args: ViewArguments,
    curriculum: Curriculum,
    steps: Count,
    images_per_step: Count,
    counter: FlopCounter | None = None,
    images: Count | None = None,
) -> Cost:
    """Predicts the cost of a run from its model and arguments, without training.

    A speed-up is the ratio of two sums, L r_max^2 / sum_t r_t^2 for a curriculum of resolutions. Eq. 9 as printed, the
    mean of (r_max / r_t)^2, is larger than what the run saves.

    Args:
        steps: L, optimizer steps of the run.
        images_per_step: over all processes and accumulated batches.
        counter: a counter of this model, for its cached results.
        images: all training images, which an `image_teacher` sees once; by default those of all steps.

    Raises ValueError for steps or images_per_step below 1.
    """
    counter = (counter or FlopCounter(model)).under(view_args)
    steps_at = curriculum.steps(steps)
    peta_images = images_per_step / 1e15
    parts = range(len(StepFlops._fields))
    counted = [sum(n * counter.step(*size)[part] for size, n in steps_at.items()) * peta_images for part in parts]
    once = counter.whole_image() * (images or steps * images_per_step) / 1e15
    counted[2] += once
    whole = counter.under(replace(view_args, teacher_tokens=1.0)).step(view_args.resolution)
    plain = whole._replace(selection=0.0).total * steps * peta_images + once
    paper, paper_plain, selection = (x * peta_images for x in _paper_cost(model, view_args, counter, steps_at))
    paper, paper_plain = paper + once, paper_plain + once
    return Cost(
        steps=steps,
        images_per_step=images_per_step,
        paper_petaflops=paper,
        counted_petaflops=sum(counted),
        counted_forward_petaflops=counted[0],
        counted_backward_petaflops=counted[1],
        counted_teacher_petaflops=counted[2],
        counted_selection_petaflops=counted[3],
        counted_local_petaflops=counted[4],
        counted_once_petaflops=once,
        paper_speedup=paper_plain / paper,
        counted_speedup=plain / sum(counted),
        paper_selection_overhead=100 * selection / (paper - selection),
    )


def _paper_cost(
    model: SSLModel, args: ViewArguments, counter: FlopCounter, steps_at: dict[Size, int]
) -> tuple[float, float, float]:
    """The paper's convention, per image of a step, summed over the steps.

    Of this recipe, of the plain one, and of the selection, which the first contains.

    The unit is the pair's cost at r_max: two views x (forward + backward as one forward) x two operations per MAC.
    """
    factor, steps = model.cost_factor(), sum(steps_at.values())
    unselected = sum(
        n * (_paper_share(size, args, factor - 1) + _paper_local(size.resolution, args, factor))
        for size, n in steps_at.items()
    )
    pair = 8 * factor * counter.backbone_macs(args.resolution)
    total, plain = pair * unselected, pair * steps * (1 + _paper_local(args.resolution, args, factor))
    selection = pair * steps * _paper_selection(args)
    if not model.has_teacher:  # a frozen one, or none
        total += sum(n * counter.step(*size).teacher for size, n in steps_at.items())
        plain += steps * counter.step(args.resolution).teacher
        if args.needs_selection_pass:
            selection += steps * args.num_views / 2 * counter.step(args.selection_resolution).teacher
    return total + selection, plain, selection


def _paper_share(size: Size, args: ViewArguments, teacher: float) -> float:
    """Cost of a step's pair relative to a plain one at r_max: quadratic in the resolution, linear in the tokens.

    `teacher` is the cost of its forward passes relative to the student's step: 0 without one.
    """
    tokens = (size.tokens + teacher * args.teacher_tokens) / (1 + teacher)
    return tokens * (size.resolution / args.resolution) ** 2


def _paper_local(resolution: int, args: ViewArguments, factor: float) -> float:
    """Cost of the local views in the same unit: half a pair of their size each, without the teacher in `factor`."""
    if not args.local_views:
        return 0.0
    return args.local_views / 2 * (args.local_size(resolution) / args.resolution) ** 2 / factor


def _paper_selection(args: ViewArguments) -> float:
    """Cost of the selection pass in the same unit (the overhead of Eq. 11); 0 without one."""
    if not args.needs_selection_pass:
        return 0.0
    views = args.num_views * args.selection_tokens
    return views * args.selection_resolution**2 / (STEP_TO_FORWARD * args.resolution**2)


def steps_per_epoch(num_images: int, images_per_step: int, drop_last: bool = True) -> int:
    """Optimizer steps of one pass over the images. Raises ValueError if there is none."""
    steps = num_images // images_per_step if drop_last else math.ceil(num_images / images_per_step)
    if steps < 1:
        raise ValueError(
            f"{num_images} training images do not fill a batch of {images_per_step}; lower "
            f"per_device_train_batch_size, or set dataloader_drop_last: false"
        )
    return steps
