"""The facts of a model card: the measured results of a run, and which strategies it used."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file

from hf_essl.config.training import WHOLE_SQUARE
from hf_essl.evaluation.pooling import POOLS
from hf_essl.evaluation.protocols import PROTOCOLS
from hf_essl.evaluation.retrieval import RETRIEVAL_IMAGES
from hf_essl.methods.backbone import fingerprint
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import Metrics, show
from hf_essl.run_folder import WEIGHTS
from hf_essl.schedules import CURVES, F1CLR
from hf_essl.views.crops import describe_center_crop

logger = logging.getLogger(__name__)
TOKENS = "Token curriculum"


class Result(NamedTuple):
    """A measured value; `dataset` is set for an accuracy in percent, which goes into the card's metadata too."""

    name: str
    value: float
    shown: str
    how: str
    dataset: str | None = None


def results(metrics: Metrics, recipe: Recipe, evaluations: Sequence[Metrics] = ()) -> list[Result]:
    """Everything measured about the quality of the backbone.

    Args:
        evaluations: see `read_evaluations`; one that repeats a result of the run is skipped.
    """
    images, at = (
        _images(metrics.get("bank_images"), metrics.get("eval_images")),
        _crop(metrics, recipe.views.resolution),
    )
    k, temperature = recipe.training.knn_k, recipe.training.knn_temperature
    start = "at the start" if recipe.model.pretrained else "at random initialization"
    knn = PROTOCOLS["knn"].title
    measured = (
        (knn, "knn_accuracy", f"k = {k}, votes weighted by exp(cosine / {temperature:g}), {at}{images}"),
        (f"{knn} {start}", "random_init_knn_accuracy", "same evaluation"),
        ("Online probe accuracy", "probe_accuracy", f"linear classifier trained alongside on detached features, {at}"),
        ("View retrieval", "retrieval", _retrieval(metrics, recipe.views.resolution)),
        (f"View retrieval {start}", "random_init_retrieval", "same evaluation"),
        ("Feature std", "feature_std", f"of the backbone's features on the unit sphere, {at}; 0 means collapse"),
        (f"Feature std {start}", "random_init_feature_std", "same evaluation"),
        ("RankMe", "rankme", f"effective rank of the backbone's features, {at}"),
        (f"RankMe {start}", "random_init_rankme", "same evaluation"),
    )
    found = []
    for name, key, how in measured:
        if (shown := show(metrics, key)) is not None:
            dataset = metrics["dataset"] if key in ("knn_accuracy", "probe_accuracy") else None
            found.append(Result(name, metrics[key], shown, how, dataset))
    known = {(result.name, result.value, result.dataset) for result in found}
    later = [_evaluated(facts) for facts in evaluations]
    return found + [result for result in later if (result.name, result.value, result.dataset) not in known]


def read_evaluations(run: Path, backbone: Path) -> list[Metrics]:
    """The results of `hf-essl evaluate --output RUN/NAME.json` for exactly these weights, sorted by file name."""
    found = {path: facts for path in sorted(run.glob("*.json")) if (facts := _evaluation(path))}
    ours = fingerprint(load_file(backbone / WEIGHTS)) if found else None
    for path, facts in found.items():
        if facts.get("fingerprint") != ours:
            logger.warning("%s is not in the card: it evaluated other weights than those of %s", path, backbone)
    return [facts for facts in found.values() if facts.get("fingerprint") == ours]


def strategies(recipe: Recipe) -> dict[str, bool]:
    """The paper's three strategies, and whether the recipe uses them; and the token curriculum, if it does."""
    tokens = {TOKENS: True} if recipe.views.min_tokens < 1 else {}
    return {
        F1CLR.title: CURVES.get(recipe.training.lr_schedule) is F1CLR,
        "Super Progressive Learning": recipe.views.resolution_schedule == "super_progressive",
        "Hard Augment": recipe.views.selection == "hard",
        **tokens,
    }


def _evaluated(facts: Metrics) -> Result:
    protocol = PROTOCOLS[facts["protocol"]]
    own = {key.replace("_", " "): facts.get(key) for key in protocol.settings}
    settings = ", ".join(f"{key} = {value}" for key, value in own.items() if value not in (None, False))
    pool = f"{POOLS[facts['pool']]} of the ViT, " if facts.get("pool") in POOLS else ""
    images = _images(facts.get("train_images"), facts.get("eval_images"))
    how = f"`hf-essl evaluate` on {facts['dataset']}: {settings}, {pool}{_crop(facts, facts['resolution'])}{images}"
    title = facts.get("title", protocol.title)
    return Result(title, facts["accuracy"], f"{facts['accuracy']:.1f} %", how, facts["dataset"])


def _retrieval(metrics: Metrics, resolution: int) -> str:
    of, total = "evaluation", metrics.get("eval_images")
    if not total:
        of, total = "training", metrics.get("bank_images") or metrics.get("train_images")
    count = min(total or RETRIEVAL_IMAGES, RETRIEVAL_IMAGES)
    return (
        f"share of {count} {of} images whose augmented view is nearer to their own second view than to those of the "
        f"others, at {resolution} px; {100 / count:.2g} % by chance"
    )


def _crop(facts: Metrics, resolution: int) -> str:
    """How the images were cropped; results from before this setting are of the whole center square."""
    return f"at {describe_center_crop(resolution, facts.get('crop_pct', WHOLE_SQUARE))}"


def _images(train: int | None, test: int | None) -> str:
    return f"; {train:,} labeled training images, {test:,} evaluation images" if train and test else ""


def _evaluation(path: Path) -> Metrics | None:
    """The content of a file that `hf-essl evaluate` wrote; None for another file."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = ("accuracy", "protocol", "dataset", "resolution")
    known = isinstance(facts, dict) and all(key in facts for key in keys) and facts["protocol"] in PROTOCOLS
    return facts if known else None
