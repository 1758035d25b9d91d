"""When a run will end: its steps, evaluations and checkpoints, as measured or as FLOPs predict them."""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import accumulate, groupby

from hf_essl.schedules import Curriculum, Size

KEPT = 100  # latest steps at one size, whose mean is its speed
WARMUP = 2  # steps at a size that do not count if there are others
FIXED = 0.2  # share of a step's time that does not shrink with its FLOPs, until two sizes are measured


class Eta:
    """Predicts the seconds that are left, from the seconds of the steps so far.

    Args:
        curriculum: of the run.
        flops: of a step at a size, in any unit.
        total: steps of the run.
    """

    def __init__(self, curriculum: Curriculum, flops: Callable[[Size], float], total: int):
        self.sizes = [curriculum.size(step / total) for step in range(total)]
        lengths = [(size, len(list(steps))) for size, steps in groupby(self.sizes)]
        ends = list(accumulate(length for _, length in lengths))
        self.stages = [(size, end - length, end) for (size, length), end in zip(lengths, ends, strict=True)]
        self.flops = flops
        self.seconds: dict[Size, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.count: dict[Size, int] = defaultdict(int)

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

    def step_seconds(self, size: Size) -> float:
        """Measured; else on the line through the two measured sizes that are nearest, in FLOPs.

        With one measured size, `FIXED` of its step's time is the same at all sizes.
        """
        known = sorted(self.seconds, key=lambda other: (abs(self.flops(other) - self.flops(size)), other))[:2]
        times = [statistics.fmean(self.seconds[other]) for other in known]
        if known[0] == size:
            return times[0]
        flops, nearest = self.flops(size), self.flops(known[0])
        if len(known) == 2 and times[0] != times[1] and (farther := self.flops(known[1])) != nearest:
            slope = (times[1] - times[0]) / (farther - nearest)
            if slope > 0 and (predicted := times[0] + slope * (flops - nearest)) > 0:
                return predicted
        return times[0] * (FIXED + (1 - FIXED) * flops / nearest)


class Pauses:
    """Seconds of an evaluation and of a checkpoint: those of the last one.

    Args:
        paused: seconds so far in which the clock of the training stood still.
    """

    def __init__(self, paused: Callable[[], float]):
        self.paused, self.evaluation, self.checkpoint = paused, 0.0, 0.0
        self._seen = paused()

    def evaluated(self) -> None:
        self.evaluation = self._lap()

    def saved(self) -> None:
        self.checkpoint = self._lap()

    def _lap(self) -> float:
        seen, self._seen = self._seen, self.paused()
        return self._seen - seen


def times_left(every: float, done: float, total: float) -> int:
    """How often something that happens at each multiple of `every` still happens after `done`, before `total`."""
    return max(math.ceil(total / every) - 1 - math.floor(done / every + 1e-6), 0) if every > 0 else 0


def duration(seconds: float) -> str:
    """`45 s`, `3:20 min` or `5:04 h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes}:{seconds % 60:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
