"""The folder of a run: the names of its files, and which checkpoint to resume from."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from hf_essl.manifest import MANIFEST, damage, has_manifest, is_begun

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of an exported backbone."""
PREPROCESSOR = "preprocessor_config.json"  # another one, of a transformers model
RECIPE = "recipe.yaml"
METRICS = "metrics.json"  # the last file of a report
STATE = "trainer_state.json"
RUN_STATE = "run_state.json"  # not in checkpoints from before manifests
PARTS = ("model.safetensors", "optimizer.*", "scheduler.*")  # *.safetensors; .pt of earlier versions, .bin of FSDP
PICKLE = ".metadata"  # of torch.distributed.checkpoint, which unpickles it


class Whole(NamedTuple):
    """The newest whole checkpoint of a run, and why each newer one is not."""

    path: Path
    skipped: list[str]  # such as "checkpoint-12 (optimizer.safetensors is missing)"


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, the latest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 for a folder with another name."""
    name, _, step = checkpoint.name.rpartition("-")
    return int(step) if name == "checkpoint" and step.isdecimal() else -1


def last_complete_checkpoint(output_dir: str | Path) -> str:
    """The path of `newest_whole`; raises ValueError as it does."""
    return str(newest_whole(output_dir).path)


def progress(run: str | Path) -> tuple[int, int] | None:
    """The step of a run's newest whole checkpoint, and the steps of the whole run; None without one."""
    try:
        state = read_state(newest_whole(run).path)
    except ValueError:
        return None
    return None if state is None else (state["global_step"], state["max_steps"])


def is_trained(run: str | Path) -> bool:
    """Whether the newest whole checkpoint is of the last step."""
    steps = progress(run)
    return steps is not None and steps[0] >= steps[1]


def newest_whole(output_dir: str | Path) -> Whole:
    """The latest checkpoint whose files are all there and as they were written.

    Raises:
        ValueError: if there is none.
    """
    skipped: list[str] = []
    saved = checkpoints(output_dir)
    for folder in saved:
        why = what_is_wrong(folder)
        if why is None:
            return Whole(folder, skipped)
        skipped.append(f"{folder.name} ({why})")
    if saved and has_weights_only(saved[0]):
        raise ValueError(f"{saved[0]} has weights only (save_only_model: true) and cannot be resumed; start over")
    others = f": {', '.join(skipped)}" if skipped else ""
    raise ValueError(
        f"no complete checkpoint in {output_dir} to resume from{others}; start it without resume_from_checkpoint"
    )


def checked_checkpoint(path: str | Path) -> Path:
    """A checkpoint that the user has named. Raises ValueError if it is not whole."""
    folder = Path(path).expanduser()
    why = what_is_wrong(folder) if folder.is_dir() else "there is no such folder"
    if why is not None:
        hint = "resume_from_checkpoint: true takes the newest whole one of output_dir"
        raise ValueError(f"resume_from_checkpoint is {path}, which cannot be resumed: {why}; {hint}")
    return folder


def has_weights_only(checkpoint: Path) -> bool:
    """Whether `save_only_model` has saved it."""
    whole = (checkpoint / STATE).exists() and (checkpoint / WEIGHTS).exists()
    return whole and not any(checkpoint.glob("optimizer.*"))


def what_is_wrong(folder: Path) -> str | None:
    """Why a checkpoint cannot be resumed; None if it is whole, or has all parts and comes from before manifests."""
    if has_manifest(folder):
        why = damage(folder)
        if why is not None:
            return why
    elif is_begun(folder):
        return "it was not saved to its end"
    elif must_have_manifest(folder):
        return f"its {MANIFEST} is missing"
    if read_state(folder) is None:
        return f"its {STATE} is missing or damaged"
    if has_weights_only(folder):
        return "it has weights only (save_only_model: true)"
    if any(folder.rglob(PICKLE)):
        return "it is in shards, whose list is a pickle; save it with fsdp_state_dict_type: FULL_STATE_DICT"
    for part in PARTS:
        found = list(folder.glob(part))
        if not found or any(path.is_file() and not path.stat().st_size for path in found):
            return f"{part.replace('*', 'safetensors')} is missing or empty"
    return None


def must_have_manifest(folder: Path) -> bool:
    """Whether the version that saved a checkpoint wrote manifests: by its own files, or by those of an earlier one."""
    if (folder / RUN_STATE).exists() or (folder / "optimizer.safetensors").exists():
        return True
    siblings = checkpoints(folder.parent)
    return folder in siblings and any(map(has_manifest, siblings[siblings.index(folder) + 1 :]))


def read_state(folder: Path) -> dict | None:
    """The content of a checkpoint's trainer_state.json; None for anything else."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        return None
    counts = all(type(state.get(name)) is int and state[name] > 0 for name in ("global_step", "max_steps"))
    named = not folder.name.startswith("checkpoint-") or folder.name == f"checkpoint-{state.get('global_step')}"
    return state if counts and named else None
