"""The folder of a run: the names of its files, and which checkpoint to resume from."""

import json
import re
from pathlib import Path

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of an exported backbone."""
PREPROCESSOR = "preprocessor_config.json"  # another one, of a transformers model
RECIPE = "recipe.yaml"
PARTS = ("model.safetensors", "optimizer.*", "scheduler.pt")  # optimizer.pt, or optimizer.bin of FSDP


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, the latest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True)


def last_complete_checkpoint(output_dir: str | Path) -> str:
    """The latest complete checkpoint; one that a crash cut short is skipped.

    Raises:
        ValueError: if there is none.
    """
    for folder in checkpoints(output_dir):
        if _is_complete(folder):
            return str(folder)
    saved = checkpoints(output_dir)
    if saved and has_weights_only(saved[0]):
        raise ValueError(f"{saved[0]} has weights only (save_only_model: true) and cannot be resumed; start over")
    raise ValueError(f"no complete checkpoint in {output_dir} to resume from; start it without resume_from_checkpoint")


def has_weights_only(checkpoint: Path) -> bool:
    """Whether `save_only_model` has saved it."""
    whole = (checkpoint / "trainer_state.json").exists() and (checkpoint / WEIGHTS).exists()
    return whole and not any(checkpoint.glob("optimizer.*"))


def _is_complete(folder: Path) -> bool:
    """Whether the state, which is written last, can be read and the other files are there."""
    try:
        json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return all(any(folder.glob(part)) for part in PARTS)
