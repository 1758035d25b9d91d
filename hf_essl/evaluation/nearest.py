"""What a backbone finds similar: the nearest neighbors of a few images, kept from before training to its end."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_essl.common import evenly_spaced, write_text

QUERIES, NEIGHBORS = 4, 5
FILE = "neighbors_at_start.json"  # in the folder of a run; a resumed run reads it


@dataclass(frozen=True)
class Neighbors:
    """The nearest images of some queries.

    queries: Q indices of a dataset. nearest: Q x k indices of it, the nearest first. cosines: Q x k similarities.
    images: how many were compared.
    """

    queries: list[int]
    nearest: list[list[int]]
    cosines: list[list[float]]
    images: int


def nearest_neighbors(features: Tensor, queries: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and indices, Q x count each, of the nearest rows of N x D to each query, except itself."""
    unit = F.normalize(features.detach().float(), dim=1)
    similarity = unit[list(queries)] @ unit.T  # Q x N
    similarity[torch.arange(len(queries)), list(queries)] = -torch.inf
    values, indices = similarity.topk(count, dim=1)
    return values, indices


def find_neighbors(features: Tensor, images: Sequence[int]) -> Neighbors | None:
    """The 5 nearest images of 4, evenly spaced over the rows; fewer of fewer images, None of one.

    Args:
        features: N x D.
        images: N indices of the rows' images in their dataset.
    """
    if len(features) < 2:
        return None
    rows = evenly_spaced(len(features), QUERIES)
    cosines, nearest = nearest_neighbors(features, rows, min(NEIGHBORS, len(features) - 1))
    found = [[images[row] for row in some] for some in nearest.tolist()]
    return Neighbors([images[row] for row in rows], found, cosines.tolist(), len(features))


class NeighborLog:
    """Keeps the neighbors of the first evaluation in the folder of the run, and those of the last in memory."""

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.last: Neighbors | None = None

    def record(self, found: Neighbors | None, step: int, writes: bool) -> None:
        """Takes an evaluation of the run's own images; `writes` in one process only."""
        self.last = found
        if step == 0 and found is not None and writes:
            write_text(self.path, json.dumps(asdict(found)))

    def start(self) -> Neighbors | None:
        """Those of the first evaluation; None if they are not known, or of other images than the last."""
        try:
            found = Neighbors(**json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        same = self.last is not None and (found.queries, found.images) == (self.last.queries, self.last.images)
        return found if same else None
