"""Means of scalars between two logs, summed on their device: it is waited for when they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_essl.methods.gather import mean_over_processes


class RunningMeans:
    """Scalars by name, added batch by batch and read as the mean over the batches and the processes."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Adds scalar tensors of one batch, without waiting for their device."""
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means since the last reading; all processes must have added the same names, and read together."""
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        if not sums:
            return {}
        means = mean_over_processes(torch.stack([sums[name] / counts[name] for name in sums]))
        return dict(zip(sums, means.tolist(), strict=True))
