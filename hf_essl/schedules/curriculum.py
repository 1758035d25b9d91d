"""Super Progressive Learning (Sec. 3.2): resolution, magnitude and patch tokens as pure functions of progress."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.schedules.curves import warmup_fraction


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
        """Resolution at `progress`, the finished share of the run in [0, 1]. Raises ValueError for other values."""
        _check_progress(progress)
        if progress < self.warmup:
            return self.warmup_resolution
        position = (progress - self.warmup) / (1 - self.warmup) * len(self.stages)
        index = int(position + 1e-9)  # a step on a boundary begins its stage, whatever the rounding
        return self.stages[min(index, len(self.stages) - 1)]  # progress 1 belongs to the last stage

    def shares(self) -> dict[int, float]:
        """Share of the run's steps at each resolution, smallest resolution first; the shares sum to 1."""
        shares = dict.fromkeys(sorted({*self.stages, self.warmup_resolution}), 0.0)
        shares[self.warmup_resolution] += self.warmup
        for stage in self.stages:
            shares[stage] += (1 - self.warmup) / len(self.stages)
        return {resolution: share for resolution, share in shares.items() if share > 0}

    def boundaries(self) -> list[float]:
        """Where a stage begins, and the end of the run, as progress; sorted, without repetitions."""
        length = (1 - self.warmup) / len(self.stages)
        return sorted({0.0, *(self.warmup + length * stage for stage in range(len(self.stages))), 1.0})


@dataclass(frozen=True)
class MagnitudeSchedule:
    """Augmentation magnitude by progress: linear from `minimum` to `maximum` over the whole run (Fig. 3, left)."""

    minimum: float
    maximum: float

    def __call__(self, progress: float) -> float:
        """Magnitude at `progress` in [0, 1]. Raises ValueError for other values."""
        _check_progress(progress)
        return self.minimum + (self.maximum - self.minimum) * progress


@dataclass(frozen=True)
class TokenSchedule:
    """Share of the patch tokens that a ViT sees, by progress: `stages` of equal length from `minimum` to `maximum`."""

    minimum: float = 1.0
    maximum: float = 1.0
    stages: int = 2

    def __post_init__(self):
        if self.stages < 2:
            raise ValueError(f"stages is {self.stages}; a schedule of tokens has at least 2, the first and the last")

    def __call__(self, progress: float) -> float:
        """Share at `progress` in [0, 1]. Raises ValueError for other values."""
        _check_progress(progress)
        stage = min(int(progress * self.stages + 1e-9), self.stages - 1)  # a step on a boundary begins its stage
        return self.minimum + (self.maximum - self.minimum) * stage / (self.stages - 1)

    def boundaries(self) -> list[float]:
        """As those of `ResolutionSchedule`."""
        return [stage / self.stages for stage in range(self.stages + 1)]


class Size(NamedTuple):
    """What the cost of a step depends on: the side of its views in pixels and the share of their patch tokens."""

    resolution: int
    tokens: float = 1.0

    def __str__(self) -> str:
        return f"{self.resolution} px" + (f", {100 * self.tokens:.3g} % of the tokens" if self.tokens < 1 else "")


@dataclass(frozen=True)
class Curriculum:
    """What the network sees at each point of a run, built once; each part is a function of progress in [0, 1]."""

    resolution: ResolutionSchedule
    magnitude: MagnitudeSchedule
    tokens: TokenSchedule = TokenSchedule()

    def size(self, progress: float) -> Size:
        """Resolution and tokens at `progress` in [0, 1]. Raises ValueError for other values."""
        return Size(self.resolution(progress), self.tokens(progress))

    def shares(self) -> dict[Size, float]:
        """Share of the run's steps at each size, smallest resolution and share first; the shares sum to 1."""
        found: dict[Size, float] = {}
        for start, end in pairwise(sorted({*self.resolution.boundaries(), *self.tokens.boundaries()})):
            size = self.size((start + end) / 2)
            found[size] = found.get(size, 0.0) + end - start
        return dict(sorted(found.items()))

    def steps(self, total: int) -> dict[Size, int]:
        """Number of optimizer steps at each size, of a run of `total` steps."""
        return dict(Counter(self.size(step / total) for step in range(total)))

    @classmethod
    def from_args(cls, views: ViewArguments, training: SSLTrainingArguments) -> Self:
        """The curriculum of a recipe (Fig. 3, middle and right).

        constant: `resolution` throughout. progressive: stages from `min_resolution` to `resolution` in steps of
        `resolution_step`. super_progressive: the same stages, after the learning rate's own warm-up at full
        resolution. The tokens rise from the first step on, with any of them.

        Raises:
            ValueError: for super_progressive with a learning rate that has no warm-up.
        """
        return cls.with_warmup(views, warmup_fraction(training))

    @classmethod
    def with_warmup(cls, views: ViewArguments, warmup: float) -> Self:
        """`from_args` with the share of the run before the learning rate's peak, in [0, 1)."""
        magnitude = MagnitudeSchedule(views.min_magnitude, views.max_magnitude)
        full, name = views.resolution, views.resolution_schedule
        if name == "super_progressive" and not warmup > 0:
            raise ValueError(
                "resolution_schedule is super_progressive but the learning rate has no warm-up; set lr_schedule to "
                "f1_clr, cosine_warmup or one_cycle, or resolution_schedule to progressive"
            )
        share = warmup if name == "super_progressive" and views.min_resolution is not None else 0.0
        tokens = TokenSchedule(views.min_tokens, views.max_tokens, views.token_stages)
        return cls(ResolutionSchedule(views.stages, share, full), magnitude, tokens)


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it is the finished share of the run, in [0, 1]")
