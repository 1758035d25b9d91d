"""The files of a run: written whole, and its numbers read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]
"""What `metrics.json` holds, or the JSON of `hf-essl evaluate`."""


def write_text(path: Path, text: str) -> Path:
    """Writes a file beside its place and moves it there whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
    return path


def read_metrics(run: str | Path) -> Metrics:
    """The `metrics.json` of a finished run. Raises ValueError where there is none."""
    try:
        metrics = json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{run} holds no finished run ({error}); give folders with a metrics.json") from error
    if not isinstance(metrics, dict) or "method" not in metrics:
        raise ValueError(f"{run}/metrics.json is not that of a run; `hf-essl pretrain` writes one")
    return metrics
