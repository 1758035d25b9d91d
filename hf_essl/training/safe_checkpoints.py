"""The overrides of transformers.Trainer by which a checkpoint holds no pickle that a resume would read."""

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from hf_essl.training.optimizer import settings_kept
from hf_essl.training.plain_state import explained, read_state, write_state

logger = logging.getLogger(__name__)

OPTIMIZER, SCHEDULER, SCALER = "optimizer.safetensors", "scheduler.safetensors", "scaler.safetensors"


class SafeCheckpointTrainer(Trainer):
    """Saves the states of optimizer, schedule, scaler and random generators as safetensors.

    Checkpoints of earlier versions, of FSDP, and of optimizers with tensors of their own class have torch's files
    instead. They are read with `weights_only`, which executes no code either. All failures are a ValueError of one
    line.
    """

    args: Any
    optimizer: Any
    lr_scheduler: Any

    # ---- overrides of transformers (private names) ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            try:
                write_state(Path(output_dir, OPTIMIZER), self.optimizer.state_dict())
                write_state(Path(output_dir, SCHEDULER), self.lr_scheduler.state_dict())
            except TypeError:  # tensors of another class, such as torchao's
                super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, peaks = Path(checkpoint), list(self.lr_scheduler.base_lrs)
        with settings_kept(self.optimizer):
            if not (folder / OPTIMIZER).exists():
                with explained(folder / "optimizer.pt or scheduler.pt"):
                    super()._load_optimizer_and_scheduler(checkpoint)
            else:
                for part, path in ((self.optimizer, folder / OPTIMIZER), (self.lr_scheduler, folder / SCHEDULER)):
                    with explained(path):
                        part.load_state_dict(read_state(path))
        self.lr_scheduler.set_peaks(peaks)

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.args.should_save:
            write_state(Path(output_dir, SCALER), scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is None or scaler is None:
            return
        path = Path(checkpoint, SCALER)
        with explained(path if path.exists() else path.with_suffix(".pt")):
            if path.exists():
                scaler.load_state_dict(read_state(path))
            else:
                super()._load_scaler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # another process may be first
        write_state(self._rng_path(output_dir), random_state(self.args.device))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        path = self._rng_path(checkpoint)
        if path.exists():
            with explained(path):
                set_random_state(read_state(path), self.args.device)
        else:
            with explained(path.with_suffix(".pth")):
                super()._load_rng_state(checkpoint)

    def _rng_path(self, folder: str) -> Path:
        suffix = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(folder, f"rng_state{suffix}.safetensors")


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the generators of Python, NumPy, torch and this process's device."""
    name, keys, *position = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *position),
        "cpu": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what `random_state` has returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])
