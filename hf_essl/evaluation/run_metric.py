"""The accuracy by which a table compares finished runs: measured during training, or by a protocol afterwards."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_essl.common import unknown, write_text
from hf_essl.config.values import RecipeError
from hf_essl.evaluation.evaluate_backbone import evaluate_backbone
from hf_essl.evaluation.protocols import PROTOCOLS, make_settings
from hf_essl.recipe import Recipe

DURING_TRAINING = {  # name: (heading, key of metrics.json)
    "knn": ("kNN-Acc. (%)", "knn_accuracy"),
    "online_probe": ("Online linear acc. (%)", "probe_accuracy"),
}
HEADINGS = {"linear": "Linear acc. (%)", "finetune": "Fine-tuned acc. (%)"}


class RunMetric:
    """One accuracy of finished runs, in percent.

    `knn` and `online_probe` are those of the run's last evaluation. The other protocols evaluate the backbone of the
    finished run on its own data set, and write `<metric>.json` into its folder.

    Args:
        name: one of `RunMetric.names()`.
        settings: of the protocol, such as {"augment": True}.

    Raises ValueError for an unknown metric, or settings that it does not accept.
    """

    def __init__(self, name: str = "knn", settings: Mapping[str, Any] | None = None):
        if name not in self.names():
            raise ValueError(unknown("metric", name, self.names()))
        if name in DURING_TRAINING and settings:
            raise ValueError(
                f"metric_args is {dict(settings)} with metric: {name}, which is measured during the training and "
                f"accepts none; set fields of the recipe, such as knn_k"
            )
        self.name = name
        self.settings = None if name in DURING_TRAINING else make_settings(name, settings or {})

    def __str__(self) -> str:
        given = {} if self.settings is None else asdict(self.settings)
        settings = ", ".join(f"{key} {value}" for key, value in given.items() if value is not None)
        return f"{self.name} ({settings})" if settings else self.name

    @staticmethod
    def names() -> list[str]:
        return [*DURING_TRAINING, *(name for name in PROTOCOLS if name not in DURING_TRAINING)]

    @property
    def heading(self) -> str:
        """The title of its column."""
        return DURING_TRAINING[self.name][0] if self.settings is None else HEADINGS.get(self.name, self.name)

    def check(self, recipe: Recipe) -> None:
        """Raises RecipeError for a recipe whose runs cannot have this metric."""
        if self.name == "online_probe" and not recipe.training.online_probe:
            raise RecipeError(f"metric is online_probe in {recipe.source}, which trains none; set online_probe: true")
        if self.settings is not None and recipe.data.streaming:
            raise RecipeError(f"metric is {self.name} in {recipe.source} with streaming: true; choose metric: knn")

    def read(self, folder: Path) -> float | None:
        """The accuracy of a finished run; None if it was not measured, or with other settings."""
        if self.settings is None:
            return _read(folder / "metrics.json").get(DURING_TRAINING[self.name][1])
        found = _read(self.file(folder))
        given = found.get("metric_args")  # `measure` writes it; `hf-essl evaluate` may have had other images
        defaults = asdict(make_settings(self.name, {}))  # of a setting that is newer than the file
        is_same = given is not None and {**defaults, **given} == asdict(self.settings)
        return found.get("accuracy") if is_same else None

    def file(self, folder: Path) -> Path:
        return folder / f"{self.name}.json"

    def is_missing(self, folder: Path) -> bool:
        """Whether `measure` would measure it."""
        return self.settings is not None and self.read(folder) is None

    def measure(self, recipe: Recipe, report: Callable[[str], None]) -> None:
        """Evaluates a finished run and writes the result; call it on all processes."""
        assert self.settings is not None, "the training has measured it"
        given = {key: value for key, value in asdict(self.settings).items() if value is not None}
        training, folder = recipe.training, recipe.training.folder
        facts = evaluate_backbone(
            str(folder),
            recipe.data,
            self.name,
            given,
            num_workers=training.dataloader_num_workers,
            seed=training.seed,
            report=report,
        )
        if PartialState().is_main_process:
            content = facts | {"metric_args": asdict(self.settings)}
            write_text(self.file(folder), json.dumps(content, indent=2))
        PartialState().wait_for_everyone()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
