"""What a checkpoint knows of its run beyond transformers' state: settings, clock, energy, images, changes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import nn

from hf_essl.common import write_text
from hf_essl.config.resume import Change, changes_since
from hf_essl.methods.backbone import storable
from hf_essl.run_folder import RUN_STATE, WEIGHTS, read_state


@dataclass
class RunState:
    """The run so far. A checkpoint from before this file has no settings, and its log has clock and energy.

    Attributes:
        settings: the fields of the recipe, flat.
        seconds: of training, without evaluation and saving.
        energy: energy_kwh and co2e_kg of all machines; empty if it is not measured.
        images_seen: by all processes.
        pairs_at_start: see `SSLTrainer.shown_pairs`.
        changes: of earlier resumes and of this one.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    energy: dict[str, float] = field(default_factory=dict)
    images_seen: int = 0
    pairs_at_start: list | None = None
    changes: list[Change] = field(default_factory=list)

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """The state in a whole checkpoint. Raises ValueError for a file that is none."""
        state = read_state(checkpoint) or {"global_step": 0, "log_history": []}
        path = checkpoint / RUN_STATE
        if not path.exists():
            return cls._from_log(state)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            changes = [Change(*change) for change in content.pop("changes")]
            pairs = content.pop("pairs_at_start")
            return cls(**content, changes=changes, pairs_at_start=pairs and [tuple(pair) for pair in pairs])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged; resume another checkpoint") from error

    @classmethod
    def _from_log(cls, state: Mapping[str, Any]) -> Self:
        log = {key: value for entry in state["log_history"] for key, value in entry.items()}  # the last of each
        energy = {key: log[key] for key in ("energy_kwh", "co2e_kg") if key in log}
        return cls(step=state["global_step"], seconds=log.get("train_seconds", 0.0), energy=energy)

    def write(self, checkpoint: Path) -> None:
        write_text(checkpoint / RUN_STATE, json.dumps(asdict(self), default=str))

    def resume_with(self, settings: dict[str, Any], checkpoint: Path) -> None:
        """Goes on with these settings, and keeps what they change. Raises ValueError for what must not change."""
        if self.settings:
            self.changes += changes_since(self.settings, settings, self.step, checkpoint.name)
        self.settings = settings


def check_weights(checkpoint: Path, model: nn.Module) -> None:
    """Raises ValueError if a checkpoint holds the weights of another network; only its header is read."""
    ours = {name: list(value.shape) for name, value in storable(model.state_dict()).items()}
    try:
        with safe_open(checkpoint / WEIGHTS, "pt") as file:
            theirs = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint / WEIGHTS} cannot be read: {error}") from error
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{checkpoint} holds another network: {name} is {_shape(theirs.get(name))} there and "
                f"{_shape(ours.get(name))} here; resume it with its own backbone, method and their arguments"
            )


def _shape(shape: list[int] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "a number"
