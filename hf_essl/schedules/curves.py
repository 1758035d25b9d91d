"""Learning-rate and momentum curves: pure functions of the optimizer step (Sec. 3.1).

A curve knows neither optimizer nor peak: `lr(t)` is the share of the peak learning rate, `momentum(t)` the position
between the lowest (0) and the highest (1) momentum, or None if the curve does not change momentum.

To add a curve, write a subclass of `Curve` and add a line to `CURVES`.
"""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Self

from hf_essl.common import unknown
from hf_essl.config import SSLTrainingArguments


class Curve(abc.ABC):
    """A learning-rate and momentum curve over the steps `t` of a run, 0 <= t <= length."""

    title: ClassVar[str]  # in tables
    description: ClassVar[str]  # one line for the help
    course: ClassVar[str]  # what the card says of the learning rate; may contain {peak} and {warmup}
    has_warmup: ClassVar[bool] = False  # whether the learning rate first rises, over `warmup_epochs`
    cycles_momentum: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def from_args(cls, args: SSLTrainingArguments, total_steps: float) -> Self:
        """The curve for a run of `total_steps` optimizer steps. Raises ValueError for a warm-up that does not fit."""

    @abc.abstractmethod
    def lr(self, t: float) -> float:
        """Share of the peak learning rate at step t, in [0, 1]. Raises ValueError for a step outside the run."""

    def momentum(self, t: float) -> float | None:
        """Position between the lowest and the highest momentum at step t, in [0, 1]; None leaves it unchanged."""
        return None

    @classmethod
    def warmup_fraction(cls, args: SSLTrainingArguments) -> float:
        """Share of the run before the peak: t_w / L (Eq. 6 and 8); 0 for a curve without a warm-up.

        A share, not a number of steps: `max_steps` shortens the whole recipe to a rehearsal of the same shape, while
        another `num_train_epochs` stretches the annealing only, which is the point of F1-CLR.
        """
        return args.warmup_epochs / args.num_train_epochs if cls.has_warmup else 0.0

    @classmethod
    def check(cls, args: SSLTrainingArguments) -> None:
        """Raises ValueError for `warmup_epochs` that the curve cannot use."""
        if not cls.has_warmup and args.warmup_epochs:
            raise ValueError(
                f"warmup_epochs is {args.warmup_epochs:g} with lr_schedule {args.lr_schedule}, which has no warm-up; "
                f"use f1_clr or cosine_warmup, or drop warmup_epochs"
            )
        if cls.has_warmup and not args.warmup_epochs > 0:
            raise ValueError(
                f"warmup_epochs is {args.warmup_epochs:g}; lr_schedule {args.lr_schedule} needs a value above 0"
            )
        if args.warmup_epochs >= args.num_train_epochs:
            raise ValueError(
                f"warmup_epochs is {args.warmup_epochs:g}, not shorter than num_train_epochs "
                f"{args.num_train_epochs:g}; shorten the warm-up or lengthen the run"
            )


@dataclass(frozen=True)
class Cosine(Curve):
    """Cosine annealing from the peak to zero over `length` steps (Eq. 5)."""

    title = "CA"
    description = "cosine annealing to 0 (Eq. 5)"
    course = "cosine annealing from {peak:g} to 0"

    length: float

    def __post_init__(self):
        _check_lengths(self.length)

    @classmethod
    def from_args(cls, args: SSLTrainingArguments, total_steps: float) -> Self:
        return cls(total_steps)

    def lr(self, t: float) -> float:
        _check_step(t, self.length)
        return half_cosine(t / self.length)


@dataclass(frozen=True)
class _WithWarmup(Curve):
    """A rise over `warmup` steps, t_w, then a cosine fall to zero at `length`, L."""

    has_warmup = True

    length: float
    warmup: float

    def __post_init__(self):
        _check_lengths(self.length, self.warmup)

    @classmethod
    def from_args(cls, args: SSLTrainingArguments, total_steps: float) -> Self:
        return cls(total_steps, cls.warmup_fraction(args) * total_steps)

    def lr(self, t: float) -> float:
        _check_step(t, self.length)
        if t < self.warmup:
            return self._rise(t / self.warmup)
        return half_cosine((t - self.warmup) / (self.length - self.warmup))

    def _rise(self, u: float) -> float:
        return u  # the share of the peak by the finished share of the warm-up


@dataclass(frozen=True)
class CosineWarmup(_WithWarmup):
    """A linear rise over `warmup` steps, then cosine annealing to zero at `length` (Eq. 6)."""

    title = "CA with warm-up"
    description = "linear warm-up, then cosine annealing to 0 (Eq. 6)"
    course = "linear rise to {peak:g} in {warmup}, then cosine annealing to 0"


@dataclass(frozen=True)
class F1CLR(_WithWarmup):
    """Fixed 1-cycle (Eq. 8): a cosine rise over `warmup` steps, t_w, then a cosine fall to zero at `length`, L.

    Momentum moves in antiphase. A longer run stretches the fall only: `warmup` does not grow with `length`.
    """

    title = "F1-CLR"
    description = "Fixed 1-cycle: cosine warm-up of fixed length, then cosine to 0; momentum in antiphase (Eq. 8)"
    course = "cosine rise to {peak:g} in {warmup}, then cosine fall to 0"
    cycles_momentum = True

    def _rise(self, u: float) -> float:
        return 1 - half_cosine(u)

    def momentum(self, t: float) -> float:
        return 1 - self.lr(t)


@dataclass(frozen=True)
class OneCycle(Curve):
    """1-CLR (Eq. 7): like `F1CLR`, but the rise takes the share `fraction`, rho, of any `length`."""

    title = "1-CLR"
    description = "1-cycle: like f1_clr, but the warm-up is a share of the run, one_cycle_fraction (Eq. 7)"
    course = "1-CLR: cosine rise to {peak:g} in {warmup}, then cosine fall to 0"
    cycles_momentum = True

    length: float
    fraction: float

    def __post_init__(self):
        _check_lengths(self.length, self.fraction * self.length)

    @classmethod
    def from_args(cls, args: SSLTrainingArguments, total_steps: float) -> Self:
        return cls(total_steps, args.one_cycle_fraction)

    @classmethod
    def warmup_fraction(cls, args: SSLTrainingArguments) -> float:
        return args.one_cycle_fraction  # rho of Eq. 7

    def lr(self, t: float) -> float:
        return F1CLR(self.length, self.fraction * self.length).lr(t)

    def momentum(self, t: float) -> float:
        return 1 - self.lr(t)


@dataclass(frozen=True)
class Constant(Curve):
    """The peak learning rate throughout."""

    title = "constant"
    description = "the peak throughout"
    course = "{peak:g} throughout"

    @classmethod
    def from_args(cls, args: SSLTrainingArguments, total_steps: float) -> Self:
        return cls()

    def lr(self, t: float) -> float:
        return 1.0


CURVES: dict[str, type[Curve]] = {
    "cosine": Cosine,
    "cosine_warmup": CosineWarmup,
    "one_cycle": OneCycle,
    "f1_clr": F1CLR,
    "constant": Constant,
}


def check_schedule(args: SSLTrainingArguments) -> None:
    """Raises ValueError for an unknown `lr_schedule`, and for a warm-up that it cannot use."""
    if args.lr_schedule not in CURVES:
        raise ValueError(unknown("lr_schedule", args.lr_schedule, CURVES))
    CURVES[args.lr_schedule].check(args)


def curve_from_args(args: SSLTrainingArguments, total_steps: float) -> Curve:
    """The curve named by `lr_schedule`, for a run of `total_steps` optimizer steps.

    Raises:
        ValueError: for an unknown name, or a warm-up that is not shorter than the run.
    """
    check_schedule(args)
    return CURVES[args.lr_schedule].from_args(args, total_steps)


def warmup_fraction(args: SSLTrainingArguments) -> float:
    """Share of the run before the learning rate's peak; 0 for a schedule without a warm-up."""
    return CURVES[args.lr_schedule].warmup_fraction(args)


def half_cosine(u: float) -> float:
    """Half a cosine wave from 1 at u = 0 to 0 at u = 1."""
    return (math.cos(math.pi * u) + 1) / 2


def _check_lengths(length: float, warmup: float = 0.0) -> None:
    if not 0 < length < math.inf:
        raise ValueError(f"length is {length:g} steps; a schedule needs more than 0, and an end")
    if not 0 <= warmup < length:
        raise ValueError(f"warmup is {warmup:g} steps in a run of {length:g}; it must be in [0, length)")


def _check_step(t: float, length: float) -> None:
    if not 0 <= t <= length:
        raise ValueError(f"step {t:g} is outside of the schedule's {length:g} steps; use a longer schedule")
