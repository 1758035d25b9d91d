"""What a card tells of a run: the accuracies and other results that were measured, and nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_essl.evaluation.protocols import PROTOCOLS
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A number that was measured, and how."""

    name: str
    value: float
    form: str
    how: str
    dataset: str | None = None
    """Of an accuracy of this backbone, in percent: it goes into the card's metadata."""

    @property
    def shown(self) -> str:
        return self.form.format(self.value)


def read_evaluations(run: Path, backbone: Path) -> list[Metrics]:
    """What `hf-essl evaluate --output RUN/NAME.json` found out about exactly these weights, by the files' names."""
    from safetensors.torch import load_file

    from hf_essl.evaluation.fingerprint import fingerprint

    files = {path: facts for path in sorted(run.glob("*.json")) if (facts := _evaluation(path))}
    ours = fingerprint(load_file(backbone / "model.safetensors")) if files else None
    for path, facts in files.items():
        if facts.get("fingerprint") != ours:
            logger.warning("%s is left out of the card: it evaluated other weights than those of %s", path, backbone)
    return [facts for facts in files.values() if facts.get("fingerprint") == ours]


def results(metrics: Metrics, recipe: Recipe, evaluations: Sequence[Metrics] = ()) -> list[Result]:
    """Everything that was measured of the backbone's quality; an evaluation that found what the run found, once."""
    dataset, images = metrics["dataset"], _images(metrics.get("bank_images"), metrics.get("eval_images"))
    resolution = f"at {recipe.views.resolution} px"
    knn = f"k = {recipe.training.knn_k}, votes exp(cosine / {recipe.training.knn_temperature:g}), {resolution}{images}"
    probe = f"a linear classifier trained beside the backbone, which its gradient does not reach, {resolution}"
    features = f"of the backbone's features, {resolution}"
    found = [
        ("kNN accuracy", "knn_accuracy", "{:.1f} %", knn, dataset),
        ("kNN accuracy at random initialisation", "random_init_knn_accuracy", "{:.1f} %", "the same", None),
        ("Online probe accuracy", "probe_accuracy", "{:.1f} %", probe, dataset),
        ("Feature std", "feature_std", "{:.4f}", f"{features}, on the unit sphere; 0 is collapse", None),
        ("Feature std at random initialisation", "random_init_feature_std", "{:.4f}", "the same", None),
        ("RankMe", "rankme", "{:.1f}", f"effective rank {features}", None),
    ]
    if recipe.model.pretrained:
        found = [(name.replace("random initialisation", "the start"), *rest) for name, *rest in found]
    own = [Result(name, metrics[key], *rest) for name, key, *rest in found if metrics.get(key) is not None]
    told = {(result.name, result.value, result.dataset) for result in own}
    later = [_evaluated(facts) for facts in evaluations]
    return own + [result for result in later if (result.name, result.value, result.dataset) not in told]


def hub_dataset(dataset: str) -> str | None:
    """The Hub id behind a data set's name, where it surely is one: names of folders hold no slash."""
    return dataset if dataset.count("/") == 1 else None


def _evaluated(facts: Metrics) -> Result:
    protocol = PROTOCOLS[facts["protocol"]]
    own = {key.replace("_", " "): facts.get(key) for key in protocol.settings}
    settings = ", ".join(f"{key} {value}" for key, value in own.items() if value not in (None, False))
    images = _images(facts.get("train_images"), facts.get("eval_images"))
    how = f"`hf-essl evaluate` on {facts['dataset']}: {settings}, at {facts['resolution']} px{images}"
    return Result(protocol.title, facts["accuracy"], "{:.1f} %", how, facts["dataset"])


def _images(train: int | None, held: int | None) -> str:
    return f"; {train:,} labelled training images, {held:,} to evaluate on" if train and held else ""


def _evaluation(path: Path) -> Metrics | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = ("accuracy", "protocol", "dataset", "resolution")
    known = isinstance(facts, dict) and all(key in facts for key in keys) and facts["protocol"] in PROTOCOLS
    return facts if known else None
