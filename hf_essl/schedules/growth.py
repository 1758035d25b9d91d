"""Larger batches at low resolution, at the noise scale of the small ones (Sec. 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hf_essl.arguments import SSLTrainingArguments, ViewArguments
from hf_essl.schedules.resolution import resolution_schedule


class BatchGrowth:
    """Lets n batches train as one where they are small: n = (r_max / r)² of them, rounded down, and at most `most`.

    The noise scale of SGD is g ∝ ε / (b (1 - β)): n times the batch with n times the learning rate has the same. Steps
    stay those of single batches, and so does every schedule; the first n - 1 of a group put their batch by, and the
    last one trains on all. Groups end early where the resolution changes, at an epoch's end, and where the run logs,
    saves or evaluates, so that nothing waits in a checkpoint. Momentum teachers move once a group.

    Args:
        resolution: pixels by progress in [0, 1].
        most: at most so many batches in one.
        steps: of the whole run.
        ends: whether a group must end before this step.
    """

    def __init__(self, resolution: Callable[[float], int], most: int, steps: int, ends: Callable[[int], bool]):
        pixels = [resolution(step / steps) for step in range(steps)]
        full = max(pixels)
        self.sizes: list[int] = []
        """Batches in the group of each step."""
        self._last: list[bool] = []
        size = 0
        for step in range(steps):
            size += 1
            grown = size >= min(most, int((full / pixels[step]) ** 2))
            last = grown or step + 1 == steps or pixels[step + 1] != pixels[step] or ends(step + 1)
            self._last.append(last)
            if last:
                self.sizes += [size] * size
                size = 0
        self._put_by: list[dict[str, Any]] = []

    @classmethod
    def from_args(
        cls, args: SSLTrainingArguments, views: ViewArguments, steps: int, epoch_steps: int | None
    ) -> BatchGrowth:
        """The growth that `batch_growth` names, for a run of `steps`, with epochs of `epoch_steps` if it has any."""
        every = [(args.logging_strategy, args.logging_steps), (args.save_strategy, args.save_steps)]
        every.append((args.eval_strategy, args.eval_steps or args.logging_steps))
        intervals = [n if n >= 1 else math.ceil(steps * n) for strategy, n in every if strategy == "steps" and n]
        intervals += [epoch_steps] if epoch_steps else []
        return cls(
            resolution_schedule(views, args.warmup_fraction),
            args.batch_growth,
            steps,
            lambda step: any(step % interval == 0 for interval in intervals),
        )

    def waits(self, step: int) -> bool:
        """Whether the batch of this step waits for the next one."""
        return not self._last[step]

    def gather(self, step: int, batch: dict[str, Any]) -> dict[str, Any] | None:
        """All batches of the group at its last step, as one; None where this one waits."""
        self._put_by.append(batch)
        if self.waits(step):
            return None
        batches, self._put_by = self._put_by, []
        return {name: torch.cat([b[name] for b in batches]) for name in ("image", "label") if name in batch}
