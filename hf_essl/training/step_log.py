"""What a training step adds to the log: means over the steps since the last log, and facts of the last step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hf_essl.evaluation import feature_std
from hf_essl.evaluation.metrics import rankme
from hf_essl.methods.distributed import mean_over_processes
from hf_essl.training.clock import Clock

RANK_ROWS = 64


class RunningMeans:
    """Scalars by name, summed on their device; only reading them waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means since the last reading, over batches and processes; call it on all processes."""
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        if not sums:
            return {}
        means = mean_over_processes(torch.stack([sums[name] / counts[name] for name in sums]))
        return dict(zip(sums, means.tolist(), strict=True))


def _std_and_rank(embedding: Tensor) -> list[Tensor]:
    """Standard deviation and effective rank of N x D; the rank is that of at most 64 rows, which costs little."""
    std, rows = feature_std(embedding), embedding[:RANK_ROWS].float().cpu()
    rank = rankme(rows) if rows.isfinite().all() else math.nan
    return [std, torch.tensor(rank, device=std.device)]


class StepLog:
    """Collects what the steps show between two logs; tensors stay on the device until they are read.

    `images`, uint8 N x 3 x S x S, `aspects`, N, and `labels`, N, are those of the last batch; `embedding` is its first
    views' keys, N x D.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        """Forgets everything, at the start of a training."""
        self.means = RunningMeans()
        self.images: Tensor | None = None
        self.aspects: Tensor | None = None
        self.labels: Tensor | None = None
        self.embedding: Tensor | None = None
        self.momentum: float | None = None
        self.step = -1  # whose views were seeded
        self._seen = 0
        self.images_seen = 0  # since the start of this training

    def add_batch(self, batch: Mapping[str, Tensor], world_size: int) -> None:
        self.images, self.aspects, self.labels = batch["image"], batch["aspect"], batch["label"]
        self._seen += len(self.images) * world_size
        self.images_seen += len(self.images) * world_size

    def read(self) -> dict[str, float | None]:
        """The entries of a log, and a new start; call it on all processes."""
        seen, self._seen = self._seen, 0
        std, rank, width = None, None, 0
        if self.embedding is not None:
            std, rank = mean_over_processes(torch.stack(_std_and_rank(self.embedding))).tolist()
            width = self.embedding.shape[1]
        return {
            "momentum": self.momentum,
            "embedding_std": std,
            "embedding_spread": std and std * math.sqrt(width),  # 1 on the whole sphere, 0 in one point
            "embedding_rank": rank,
            "images_per_second": seen / self.clock.lap(),
            "train_seconds": self.clock.seconds,
            **self.means.read(),
        }
