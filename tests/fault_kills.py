"""kill -9 at a step or inside a save, then a resume: the end must equal that of an uninterrupted run, bit for bit.

Every run is a process forked from this one, whose libraries are loaded. It kills itself at an exact moment; of two
processes, the second is killed when the first is dead.
"""

import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import transformers.trainer
from transformers import TrainerCallback, TrainerState

from hf_essl.methods import METHODS
from hf_essl.run_folder import last_complete_checkpoint
from hf_essl.training import base_trainer, run_state
from tests.fault_runs import SAVING, count, same_weights
from tests.helpers import patches, small_trainer

SETTINGS = {**SAVING, "learning_rate": 0.005, "sync_batchnorm": False, "logging_steps": 4}
VIEWS = {"dino": {"local_views": 2, "local_resolution": 16}}  # multi-crop, as published
WRITERS = {  # what a save calls, in its order
    "begin": (base_trainer, "begin"),
    "run state": (run_state, "write_text"),
    "safetensors": (safetensors.torch, "save_file"),
    "torch.save": (torch, "save"),
    "trainer state": (TrainerState, "save_to_json"),
    "manifest": (base_trainer, "write_manifest"),
    "rotation": (base_trainer, "rotate"),
}
MOMENTS = [
    *(("step", number) for number in (1, 5, 7, 10, 11)),
    *((writer, number) for writer in WRITERS for number in (1, 2, 3)),
    *(("safetensors", number) for number in range(4, 13)),  # weights, optimizer, scheduler, random state of each save
    *(("half-written safetensors", number) for number in (1, 2, 8)),
]


class KillAtStep(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: tuple[str, int]) -> list[TrainerCallback]:
    """Prepares this process to kill itself when it calls a writer for the n-th time, or at the end of a step."""
    name, number = moment
    if name == "step":
        return [KillAtStep(number)]
    module, attribute = WRITERS["safetensors" if name == "half-written safetensors" else name]
    original, calls = getattr(module, attribute), itertools.count(1)

    def deadly(*args, **kwargs):
        last = next(calls) == number
        if last and name == "half-written safetensors":
            original(*args, **kwargs)
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        if last:
            die()
        return original(*args, **kwargs)

    setattr(module, attribute, deadly)
    if name == "safetensors" and hasattr(transformers.trainer, "safetensors"):
        transformers.trainer.safetensors.torch.save_file = deadly
    return []


def train(folder: Path, method: str, moment: tuple[str, int] | None, size: int) -> None:
    """A run to its end or its moment; it resumes if there is something to resume."""
    callbacks = arm(moment) if moment and int(os.environ.get("RANK", 0)) == 0 else []
    settings = {**SETTINGS, "method": method, "views": VIEWS.get(method), "per_device_train_batch_size": 16 // size}
    trainer = small_trainer(folder, callbacks=callbacks, **settings)
    try:
        found: str | None = last_complete_checkpoint(folder)
    except ValueError:
        found = None
    trainer.train(resume_from_checkpoint=found)


def in_processes(size: int, log: Path, function: Callable[[], None]) -> int:
    """Forks processes that run a function and returns the first's status; if it was killed, the others are too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            _child(rank, size, port, log, function)
        children.append(child)
    _, first = os.waitpid(children[0], 0)
    for other in children[1:]:
        if os.WIFSIGNALED(first):
            os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    return first


def _child(rank: int, size: int, port: int, log: Path, function: Callable[[], None]) -> None:
    code = 1
    try:
        if size > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        torch.set_num_threads(1)
        function()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def kill_and_resume(root: Path, method: str, moment: tuple[str, int], size: int) -> bool:
    whole, cut = root / f"{method}-{size}", root / "cut"
    shutil.rmtree(cut, ignore_errors=True)
    if not whole.exists():
        in_processes(size, root / "log", lambda: train(whole, method, None, size))
    killed = in_processes(size, root / "log", lambda: train(cut, method, moment, size))
    if not os.WIFSIGNALED(killed):
        raise RuntimeError("it was not killed")
    resumed = in_processes(size, root / "log", lambda: train(cut, method, None, size))
    if resumed:
        raise RuntimeError((root / "log").read_text()[-300:])
    return same_weights(*(folder / "checkpoint-12" / "model.safetensors" for folder in (whole, cut)))


def run(number: int) -> tuple[int, int]:
    """Of `number` kills, every fourth is of two processes."""
    patches("train", 96)  # read once, before the forks
    patches("validation", 32)
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    cases = []
    for index, method in zip(range(number), itertools.cycle(METHODS), strict=False):
        size, moment = (
            (2 if index % 4 == 3 else 1),
            MOMENTS[7 * index % len(MOMENTS)],
        )  # 7 shares no factor with their number
        name = f"{method}, {size} processes, {moment[0]} {moment[1]}"
        cases.append((name, lambda m=method, at=moment, n=size: kill_and_resume(root, m, at, n)))
    try:
        return count(cases)
    finally:
        shutil.rmtree(root)
