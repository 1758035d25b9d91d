"""When a run will end: each resolution's speed as it was measured, or as its FLOPs predict it."""

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import accumulate, groupby

from hf_essl.schedules import Curriculum
from hf_essl.training.clock import Clock

KEPT = 50  # latest steps at one resolution, whose mean is its speed
WARMUP = 2  # steps at a resolution that do not count if there are others


class Eta:
    """Predicts the seconds that are left, from the seconds of the steps so far.

    Args:
        curriculum: of the run.
        flops: of a step at a resolution, in any unit.
    """

    def __init__(self, curriculum: Curriculum, flops: Callable[[int], float], total: int):
        self.sizes = [curriculum.resolution(step / total) for step in range(total)]
        lengths = [(size, len(list(steps))) for size, steps in groupby(self.sizes)]
        ends = list(accumulate(length for _, length in lengths))
        self.stages = [(size, end - length, end) for (size, length), end in zip(lengths, ends, strict=True)]
        self.flops = flops
        self.seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.count: dict[int, int] = defaultdict(int)

    def add(self, step: int, seconds: float) -> None:
        """Counts the step with this number, from 0."""
        size = self.sizes[step]
        self.count[size] += 1
        if self.count[size] == WARMUP + 1:
            self.seconds[size].clear()
        self.seconds[size].append(seconds)

    def remaining(self, step: int) -> float | None:
        """Seconds of training after `step` steps; None before the first one."""
        if not self.seconds:
            return None
        return sum(max(end - max(start, step), 0) * self.step_seconds(size) for size, start, end in self.stages)

    def step_seconds(self, size: int) -> float:
        """Measured, or in proportion to the FLOPs of the measured resolution that is nearest."""
        known = min(self.seconds, key=lambda other: (abs(other - size), other))
        measured = statistics.fmean(self.seconds[known])
        return measured if known == size else measured * self.flops(size) / self.flops(known)


class Overhead:
    """How much longer a run takes than its steps: evaluations and checkpoints, as a factor from 1."""

    def __init__(self, clock: Clock):
        self.clock, self.start, self.trained = clock, time.perf_counter(), clock.seconds

    @property
    def factor(self) -> float:
        trained = self.clock.seconds - self.trained
        return max((time.perf_counter() - self.start) / trained, 1.0) if trained > 0 else 1.0


def duration(seconds: float) -> str:
    """`45 s`, `3:20 min` or `5:04 h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes}:{seconds % 60:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
