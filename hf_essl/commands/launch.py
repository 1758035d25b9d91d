"""`--accelerate_config NAME`: runs the command under `accelerate launch` with a named configuration."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from hf_essl.common import unknown
from hf_essl.config.packaged import LAUNCH, packaged


def find_config(name: str) -> Path:
    """The launch configuration at this path, or the packaged one with this name. Raises ValueError if none."""
    if Path(name).is_file():
        return Path(name)
    known = packaged(LAUNCH)
    if name in known:
        return known[name]
    raise ValueError(f"{unknown('accelerate_config', name, sorted(known))}; or pass the path of a file")


def process_count(name: str) -> int:
    """How many processes a launch configuration starts in all."""
    config = find_config(name)
    settings = yaml.safe_load(config.read_text()) or {}
    command = launch_command(config, [])
    if "--num_processes" in command:
        return int(command[command.index("--num_processes") + 1])
    return int(settings.get("num_processes", 1))


def launch_command(config: Path, words: Sequence[str], command: str = "pretrain") -> list[str]:
    """The words of `accelerate launch` with this configuration and of `hf-essl COMMAND` with these words.

    On one machine `gpu_ids: all` uses all GPUs, whatever num_processes says; `use_cpu` is passed on to the recipe.
    Raises ValueError if the configuration needs GPUs and there is none.
    """
    settings = yaml.safe_load(config.read_text()) or {}
    options, overrides = [], []
    if settings.get("use_cpu"):
        overrides = ["--use_cpu", "true"]
    elif not torch.accelerator.is_available():
        raise ValueError(f"accelerate_config {config} needs a GPU and this machine has none; use `cpu`")
    elif settings.get("gpu_ids") == "all" and settings.get("num_machines", 1) == 1:
        options = ["--num_processes", str(torch.accelerator.device_count())]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *options]
    return [*launcher, "-m", "hf_essl", command, *words, *overrides]


def relaunch(command: Sequence[str], environment: dict[str, str]) -> None:
    """Replaces this process by the command, so that signals and the exit code are the command's."""
    sys.stdout.flush()
    os.execve(command[0], list(command), environment)
