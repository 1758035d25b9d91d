"""What a backbone finds similar: the nearest neighbors of a few images, kept from before training to its end."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    return nearest_in_blocks(lambda: [features], queries, count)


def nearest_in_blocks(
    blocks: Callable[[], Iterable[Tensor]], queries: Sequence[int], count: int
) -> tuple[Tensor, Tensor]:
    """`nearest_neighbors` of features that come in blocks of rows; each call of `blocks` starts again."""
    vectors: dict[int, Tensor] = {}
    for start, block in _numbered(blocks()):
        vectors |= {row: block[row - start] for row in queries if start <= row < start + len(block)}
    wanted = F.normalize(torch.stack([vectors[row] for row in queries]).detach().float(), dim=1)
    values, indices = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start, block in _numbered(blocks()):
        similarity = wanted @ F.normalize(block.detach().float(), dim=1).T  # Q x rows of the block
        for position, row in enumerate(queries):
            if start <= row < start + len(block):
                similarity[position, row - start] = -torch.inf
        rows = torch.arange(start, start + len(block)).expand_as(similarity)
        values, indices = torch.cat([values, similarity.cpu()], dim=1), torch.cat([indices, rows], dim=1)
        values, kept = values.topk(min(count, values.shape[1]), dim=1)
        indices = indices.gather(1, kept)
    return values, indices


def _numbered(blocks: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each block with the number of its first row."""
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


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
