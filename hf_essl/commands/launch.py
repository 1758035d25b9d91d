"""`--accelerate_config NAME`: starts the same command again under `accelerate launch`, with a file by its name."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

FOLDERS = (Path("recipes/accelerate"), Path(__file__).parents[2] / "recipes" / "accelerate")


def find_config(name: str) -> Path:
    """The launch configuration of this name under recipes/accelerate, or at this path.

    Raises:
        ValueError: where there is none, with the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for folder in reversed(FOLDERS) for path in sorted(folder.glob("*.yaml"))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(sorted(known))}, or the path of a file"
    raise ValueError(f"accelerate_config is {name!r}, no launch configuration; {hint}")


def launch_command(config: Path, words: Sequence[str]) -> list[str]:
    """`accelerate launch` with this configuration, then pretrain with these words.

    `gpu_ids: all` on one machine means all of its GPUs, whatever num_processes says; `use_cpu` reaches the recipe.

    Raises:
        ValueError: where the configuration asks for GPUs and there is none.
    """
    settings = yaml.safe_load(config.read_text()) or {}
    options, overrides = [], []
    if settings.get("use_cpu"):
        overrides = ["--use_cpu", "true"]
    elif not torch.accelerator.is_available():
        raise ValueError(f"accelerate_config {config} asks for a GPU and this machine shows none; take `cpu`")
    elif settings.get("gpu_ids") == "all" and settings.get("num_machines", 1) == 1:
        options = ["--num_processes", str(torch.accelerator.device_count())]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *options]
    return [*launcher, "-m", "hf_essl", "pretrain", *words, *overrides]


def relaunch(command: Sequence[str], environment: dict[str, str]) -> None:
    """Becomes the command: signals and the exit code are its own."""
    sys.stdout.flush()
    os.execve(command[0], list(command), environment)
