"""Nearest neighbors among the embeddings of a parquet file of `hf_essl.evaluation.embed`."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from hf_essl.common import evenly_spaced, unknown
from hf_essl.evaluation.embed import INFO, PART
from hf_essl.evaluation.nearest import nearest_in_blocks


@dataclass(frozen=True)
class Match:
    """A query and its neighbors, the nearest first, as rows of the file."""

    query: int
    neighbors: list[int]
    cosines: list[float]


@dataclass(frozen=True)
class Embeddings:
    """The rows of a file: their paths, and its facts: dataset, backbone, resolution, … (see `embed`).

    `blocks` reads the features, N x D, from the start, a block of rows at a time, so that memory does not grow with N.
    """

    paths: list[str]
    blocks: Callable[[], Iterable[Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str | Path) -> "Embeddings":
        """Raises ValueError for a file that `hf-essl embed` has not written, and for features of patches."""
        try:
            paths = parquet.read_table(file, columns=["path"])["path"].to_pylist()
            schema = parquet.read_schema(file)
            facts = json.loads((schema.metadata or {}).get(INFO, b"{}"))
            kind = schema.field("embedding").type
            is_vector = pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
        except FileNotFoundError as error:
            raise ValueError(f"{file} does not exist; `hf-essl embed` writes such a file") from error
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise ValueError(f"{file} is no file of `hf-essl embed`: {' '.join(str(error).split())}") from error
        if not is_vector:
            raise ValueError(f"{file} has no vector per image but {kind}; embed the images without --patches")
        return cls(paths, lambda: _blocks(file), facts)

    def search(self, queries: Sequence[str] | int, count: int) -> list[Match]:
        """The `count` nearest rows of each query, by cosine; `queries` are paths, or a number, evenly spaced.

        Raises ValueError for a path that is not in the file, and for more neighbors than there are.
        """
        if not 1 <= count < len(self.paths):
            raise ValueError(f"neighbors is {count} with {len(self.paths)} images; choose 1 to {len(self.paths) - 1}")
        rows = evenly_spaced(len(self.paths), queries) if isinstance(queries, int) else [self._row(q) for q in queries]
        cosines, nearest = nearest_in_blocks(self.blocks, rows, count)
        found = zip(rows, nearest.tolist(), cosines.tolist(), strict=True)
        return [Match(row, neighbors, values) for row, neighbors, values in found]

    def _row(self, path: str) -> int:
        """Of a path as in the file, or of the image's file itself."""
        root, file = Path(self.facts.get("dataset", "")).expanduser().resolve(), Path(path).expanduser().resolve()
        below = file.relative_to(root).as_posix() if file.is_relative_to(root) else path
        for name in (path, below):
            if name in self.paths:
                return self.paths.index(name)
        some = self.paths if len(self.paths) <= 10 else [*self.paths[:10], "…"]
        raise ValueError(unknown("query", path, some))


def _blocks(file: str | Path) -> Iterator[Tensor]:
    with parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=PART, columns=["embedding"]):
            yield torch.from_numpy(np.stack(batch["embedding"].to_numpy(zero_copy_only=False)))
