"""`results.json` of a sweep: the results of its finished cells, also of those that ran elsewhere."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_essl.common import write_text
from hf_essl.reporting.metrics import Metrics

CELL, COLUMNS = "cell", "columns"
REQUIRED = (CELL, COLUMNS, "seed")
PLAIN = {"lr_schedule": "cosine", "resolution_schedule": "constant", "selection": "none"}
"""The settings of a plain recipe; cells have their own, which tells it from the others."""


def write_results(path: str | Path, cells: Iterable[Mapping[str, Any]]) -> Path:
    """Writes the cells: name, what distinguishes them, and the single values of their metrics."""
    kept = [{k: v for k, v in cell.items() if k == COLUMNS or not isinstance(v, (dict, list))} for cell in cells]
    return write_text(Path(path), json.dumps(kept, indent=1) + "\n")


def read_results(path: str | Path) -> list[Metrics]:
    """The cells of a file of `write_results`. Raises ValueError for a file that is missing or is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as the results of a sweep: {error}") from error
    if not isinstance(found, list) or not all(isinstance(x, dict) and all(k in x for k in REQUIRED) for x in found):
        raise ValueError(f"{path} has no results of a sweep; pass a results.json that `hf-essl sweep` wrote")
    return found


def results_by_cell(paths: Sequence[str | Path]) -> dict[str, Metrics]:
    """The cells of several files by name; a later file wins."""
    return {cell[CELL]: cell for path in paths for cell in read_results(path)}
