"""Learning-rate and momentum curves: pure functions of the optimizer step (Sec. 3.1).

A curve answers in shares, so that it knows neither optimizer nor peak: `lr(t)` is the share of the peak learning rate,
`momentum(t)` the position between the lowest (0) and the highest (1) momentum, or None where it leaves momentum alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hf_essl.arguments import SSLTrainingArguments


class Curve(Protocol):
    """What every curve answers, for a step `t` of the run, 0 <= t <= length. Raises ValueError outside of it."""

    def lr(self, t: float) -> float:
        """Share of the peak learning rate, in [0, 1]."""

    def momentum(self, t: float) -> float | None:
        """Position between the lowest and the highest momentum, in [0, 1], or None: leave it alone."""


@dataclass(frozen=True)
class Cosine:
    """Cosine annealing from the peak to zero over `length` steps (Eq. 5)."""

    length: float

    def __post_init__(self):
        _check_lengths(self.length)

    def lr(self, t: float) -> float:
        _check_step(t, self.length)
        return _fall(t / self.length)

    def momentum(self, t: float) -> None:
        return None


@dataclass(frozen=True)
class CosineWarmup:
    """A linear rise over `warmup` steps, then cosine annealing to zero at `length` (Eq. 6)."""

    length: float
    warmup: float

    def __post_init__(self):
        _check_lengths(self.length, self.warmup)

    def lr(self, t: float) -> float:
        _check_step(t, self.length)
        if t < self.warmup:
            return t / self.warmup
        return _fall((t - self.warmup) / (self.length - self.warmup))

    def momentum(self, t: float) -> None:
        return None


@dataclass(frozen=True)
class F1CLR:
    """Fixed 1-cycle (Eq. 8): a cosine rise over `warmup` steps, t_w, then a cosine fall to zero at `length`, L.

    Momentum moves in antiphase. A longer run stretches the fall alone: `warmup` does not grow with `length`.
    """

    length: float
    warmup: float

    def __post_init__(self):
        _check_lengths(self.length, self.warmup)

    def lr(self, t: float) -> float:
        _check_step(t, self.length)
        if t < self.warmup:
            return 1 - _fall(t / self.warmup)
        return _fall((t - self.warmup) / (self.length - self.warmup))

    def momentum(self, t: float) -> float:
        return 1 - self.lr(t)


@dataclass(frozen=True)
class OneCycle:
    """1-CLR (Eq. 7): as `F1CLR`, but the rise takes the share `fraction`, rho, of any `length`."""

    length: float
    fraction: float

    def __post_init__(self):
        _check_lengths(self.length, self.fraction * self.length)

    def lr(self, t: float) -> float:
        return F1CLR(self.length, self.fraction * self.length).lr(t)

    def momentum(self, t: float) -> float:
        return 1 - self.lr(t)


@dataclass(frozen=True)
class Constant:
    """The peak learning rate throughout."""

    def lr(self, t: float) -> float:
        return 1.0

    def momentum(self, t: float) -> None:
        return None


def curve_from_args(training_args: SSLTrainingArguments, total_steps: float) -> Curve:
    """The curve that `lr_schedule` names, for a run of `total_steps` optimizer steps.

    Raises ValueError for an unknown name, or for a warm-up that is not shorter than the run.
    """
    warmup = training_args.warmup_fraction * total_steps
    makers: dict[str, Callable[[], Curve]] = {
        "cosine": lambda: Cosine(total_steps),
        "cosine_warmup": lambda: CosineWarmup(total_steps, warmup),
        "one_cycle": lambda: OneCycle(total_steps, training_args.one_cycle_fraction),
        "f1_clr": lambda: F1CLR(total_steps, warmup),
        "constant": Constant,
    }
    name = training_args.lr_schedule
    if name not in makers:
        raise ValueError(f"lr_schedule is {name!r}; take one of {', '.join(makers)}")
    return makers[name]()


def _fall(u: float) -> float:
    """Half a cosine wave from 1 at u = 0 to 0 at u = 1."""
    return (math.cos(math.pi * u) + 1) / 2


def _check_lengths(length: float, warmup: float = 0.0) -> None:
    if not length > 0:
        raise ValueError(f"a schedule of {length:g} steps has no shape; its length must be above 0")
    if not 0 <= warmup < length:
        raise ValueError(f"a warm-up of {warmup:g} steps does not fit a run of {length:g}; it must be in [0, length)")


def _check_step(t: float, length: float) -> None:
    if not 0 <= t <= length:
        raise ValueError(f"step {t:g} lies outside of the schedule's {length:g} steps; make the schedule longer")
