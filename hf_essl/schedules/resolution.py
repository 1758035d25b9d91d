"""Super Progressive Learning (Sec. 3.2): view resolution and augmentation magnitude as pure functions of progress."""

from __future__ import annotations

from dataclasses import dataclass

from hf_essl.arguments import ViewArguments


@dataclass(frozen=True)
class ResolutionSchedule:
    """Resolution in pixels by progress: `warmup_resolution` for a share `warmup`, then `stages` of equal length."""

    stages: tuple[int, ...]
    warmup: float
    warmup_resolution: int

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages is empty; a resolution schedule needs at least one, such as (224,)")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the run in [0, 1)")

    def __call__(self, progress: float) -> int:
        """Resolution at `progress`, the share of the run that is done, in [0, 1]. Raises ValueError outside of it."""
        _check_progress(progress)
        if progress < self.warmup:
            return self.warmup_resolution
        position = (progress - self.warmup) / (1 - self.warmup) * len(self.stages)
        index = int(position + 1e-9)  # a step that lies on a boundary begins its stage, however the division rounds
        return self.stages[min(index, len(self.stages) - 1)]  # progress 1 belongs to the last stage

    def shares(self) -> dict[int, float]:
        """Share of the run's steps at each resolution, smallest resolution first; the shares sum to 1."""
        shares = dict.fromkeys(sorted({*self.stages, self.warmup_resolution}), 0.0)
        shares[self.warmup_resolution] += self.warmup
        for stage in self.stages:
            shares[stage] += (1 - self.warmup) / len(self.stages)
        return shares


@dataclass(frozen=True)
class MagnitudeSchedule:
    """Augmentation magnitude by progress: linear from `minimum` to `maximum` over the whole run (Fig. 3, left)."""

    minimum: float
    maximum: float

    def __call__(self, progress: float) -> float:
        """Magnitude at `progress` in [0, 1]. Raises ValueError outside of it."""
        _check_progress(progress)
        return self.minimum + (self.maximum - self.minimum) * progress


def resolution_schedule(view_args: ViewArguments, warmup_fraction: float) -> ResolutionSchedule:
    """The resolution schedule that `view_args` names (Fig. 3, middle and right).

    constant: `resolution` throughout. progressive: stages from `min_resolution` to `resolution` by `resolution_step`.
    super_progressive: the same stages, after a warm-up at full resolution for the share `warmup_fraction` of the run,
    the learning rate's own (`SSLTrainingArguments.warmup_fraction`).

    Raises ValueError for arguments that `ViewArguments.check` refuses, and for super_progressive without a warm-up.
    """
    view_args.check()
    full, name = view_args.resolution, view_args.resolution_schedule
    if name == "super_progressive" and not warmup_fraction > 0:
        raise ValueError(
            "resolution_schedule is super_progressive and the learning rate has no warm-up; take lr_schedule f1_clr, "
            "cosine_warmup or one_cycle, or resolution_schedule progressive"
        )
    if name == "constant" or view_args.min_resolution is None:
        return ResolutionSchedule((full,), 0.0, full)
    stages = tuple(range(view_args.min_resolution, full + 1, view_args.resolution_step))
    return ResolutionSchedule(stages, warmup_fraction if name == "super_progressive" else 0.0, full)


def magnitude_schedule(view_args: ViewArguments) -> MagnitudeSchedule:
    """Linear from `min_magnitude` to `max_magnitude`."""
    return MagnitudeSchedule(view_args.min_magnitude, view_args.max_magnitude)


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it is the share of the run that is done, in [0, 1]")
