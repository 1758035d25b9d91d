"""Finding the checkpoint to go on from."""

from __future__ import annotations

import json
import re
from pathlib import Path

PARTS = ("model.safetensors", "optimizer.*", "scheduler.pt")  # optimizer.pt, or optimizer.bin of FSDP


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, the latest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True)


def last_complete_checkpoint(output_dir: str | Path) -> str:
    """The latest checkpoint that was written to its end; one torn by a crash is passed over.

    Raises:
        ValueError: where there is none.
    """
    for folder in checkpoints(output_dir):
        if _is_complete(folder):
            return str(folder)
    raise ValueError(f"no complete checkpoint in {output_dir} to resume from; start it without resume_from_checkpoint")


def _is_complete(folder: Path) -> bool:
    """The state is written last, so a folder whose state parses holds the rest."""
    try:
        json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return all(any(folder.glob(part)) for part in PARTS)
