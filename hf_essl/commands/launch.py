"""`--accelerate_config NAME`: runs the command under `accelerate launch` with a named configuration."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil
import torch
import yaml

from hf_essl.common import SUPERVISED, one_line, unknown
from hf_essl.config.inherited import check_launched
from hf_essl.config.packaged import LAUNCH, packaged


def find_config(name: str) -> Path:
    """The launch configuration at this path, or the packaged one with this name. Raises ValueError if none."""
    if Path(name).is_file():
        return Path(name)
    known = packaged(LAUNCH)
    if name in known:
        return known[name]
    raise ValueError(f"{unknown('accelerate_config', name, sorted(known))}; or pass the path of a file")


class Launch(NamedTuple):
    """What a launch starts: processes in all, the machines that share them, and whether they stay off the GPUs."""

    processes: int
    machines: int = 1
    on_cpu: bool = False


def launch_of(name: str) -> Launch:
    """What a launch configuration starts. Raises ValueError as `find_config` and `launch_command` do."""
    config = find_config(name)
    settings, command = _settings(config), launch_command(config, [])
    processes = settings.get("num_processes", 1)
    if "--num_processes" in command:
        processes = command[command.index("--num_processes") + 1]
    return Launch(int(processes), int(settings.get("num_machines", 1)), bool(settings.get("use_cpu")))


def launch_here(environment: Mapping[str, str]) -> Launch:
    """What torchrun or SLURM has started, by its variables; else one process."""
    processes = int(environment.get("WORLD_SIZE", "1"))
    return Launch(processes, max(processes // int(environment.get("LOCAL_WORLD_SIZE", processes)), 1))


def _settings(config: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"accelerate_config {config} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"accelerate_config {config} is no mapping; make one with `accelerate config`")
    return content


def launch_command(config: Path, words: Sequence[str], command: str = "pretrain") -> list[str]:
    """The words of `accelerate launch` with this configuration and of `hf-essl COMMAND` with these words.

    On one machine `gpu_ids: all` uses all GPUs, whatever num_processes says; `use_cpu` is passed on to the recipe.
    Raises ValueError if the configuration needs GPUs and there is none, or chooses an engine that cannot train here.
    """
    settings = _settings(config)
    version = (settings.get("fsdp_config") or {}).get("fsdp_version", 1)
    check_launched(str(settings.get("distributed_type", "NO")), version, bool(settings.get("use_cpu")))
    options, overrides = [], []
    if settings.get("use_cpu"):
        overrides = ["--use_cpu", "true"]
    elif not torch.accelerator.is_available():
        raise ValueError(f"accelerate_config {config} needs a GPU and this machine has none; use `cpu`")
    elif settings.get("gpu_ids") == "all" and settings.get("num_machines", 1) == 1:
        options = ["--num_processes", str(torch.accelerator.device_count())]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *options]
    return [*launcher, "-m", "hf_essl", command, *words, *overrides]


def join_slurm_step(environment: MutableMapping[str, str]) -> None:
    """Lets the tasks of one `srun` train together: its variables as those of torchrun, unless these are set.

    A batch script has no step of several tasks, so a command in it stays alone.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks < 2 or "RANK" in environment or "SLURM_PROCID" not in environment:
        return
    port = 29500 + int(environment.get("SLURM_JOB_ID", 0)) % 1000
    joined = {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": str(tasks),
        "MASTER_ADDR": environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
        "MASTER_PORT": str(port),
    }
    if per_node := environment.get("SLURM_STEP_TASKS_PER_NODE"):
        joined["LOCAL_WORLD_SIZE"] = re.split(r"\D", per_node)[0]  # such as 4(x2)
    for name, value in joined.items():
        environment.setdefault(name, value)


def relaunch(command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Runs the command in a session of its own and exits as it does; Ctrl-C, SIGTERM and SIGHUP go to its processes.

    The launcher itself gets no signal, because it would kill the processes before they have saved a checkpoint. A
    second signal kills everything.
    """
    sys.stdout.flush()
    launcher = subprocess.Popen(list(command), env={**environment, SUPERVISED: "1"}, start_new_session=True)
    received: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        if received:
            os.killpg(launcher.pid, signal.SIGKILL)
            return
        received.append(number)
        for process in psutil.Process(launcher.pid).children():
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, pass_on)
    code = launcher.wait()
    sys.exit(128 + received[0] if received and code == 0 else code % 256)
