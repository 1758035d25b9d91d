"""Nearest neighbors among the embeddings of a parquet file of `hf_essl.evaluation.embed`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from hf_essl.common import evenly_spaced, unknown
from hf_essl.evaluation.embed import INFO
from hf_essl.evaluation.nearest import nearest_neighbors


@dataclass(frozen=True)
class Match:
    """A query and its neighbors, the nearest first, as rows of the file."""

    query: int
    neighbors: list[int]
    cosines: list[float]


@dataclass(frozen=True)
class Embeddings:
    """The rows of a file: paths, and features N x D; and its facts: dataset, backbone, resolution, … (see `embed`)."""

    paths: list[str]
    features: torch.Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str | Path) -> "Embeddings":
        """Raises ValueError for a file that `hf-essl embed` has not written."""
        try:
            table = parquet.read_table(file, columns=["path", "embedding"], memory_map=True)
            column = table["embedding"].combine_chunks()
            facts = json.loads((table.schema.metadata or {}).get(INFO, b"{}"))
            values = np.asarray(column.flatten(recursive=True)).reshape(len(table), -1)
        except (OSError, pa.ArrowException, AttributeError, ValueError) as error:
            raise ValueError(f"{file} is no file of `hf-essl embed`: {' '.join(str(error).split())}") from error
        if "patches" in facts:
            raise ValueError(f"{file} has features of patches; write one vector per image, without --patches")
        return cls(table["path"].to_pylist(), torch.from_numpy(values.copy()), facts)

    def search(self, queries: Sequence[str] | int, count: int) -> list[Match]:
        """The `count` nearest rows of each query, by cosine; `queries` are paths, or a number, evenly spaced.

        Raises ValueError for a path that is not in the file, and for more neighbors than there are.
        """
        if not 1 <= count < len(self.paths):
            raise ValueError(f"neighbors is {count} with {len(self.paths)} images; choose 1 to {len(self.paths) - 1}")
        rows = evenly_spaced(len(self.paths), queries) if isinstance(queries, int) else [self._row(q) for q in queries]
        cosines, nearest = nearest_neighbors(self.features, rows, count)
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
