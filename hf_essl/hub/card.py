"""The model card of a run: README.md beside the exported backbone, from the run's own files alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_essl.common import write_text
from hf_essl.hub import card_tables
from hf_essl.hub.card_facts import Result, hub_dataset, read_evaluations, results
from hf_essl.hub.card_limits import limits
from hf_essl.hub.card_loading import loading
from hf_essl.hub.citation import citations, method_title
from hf_essl.recipe import Recipe, read_recipe
from hf_essl.reporting.metrics import Metrics, read_metrics

TEMPLATE = Path(__file__).with_name("card_template.md")
CARD = "README.md"
PICTURES = {
    "curves.png": "Curves of the run against the optimizer step: loss, kNN accuracy, standard deviation of the "
    "embedding, learning rate with momentum, resolution with magnitude, and throughput with petaFLOPs",
    "views.png": "Augmented views of training images at the start, the middle and the end of the run, each row beside "
    "its original",
}
"""The pictures of a run by their names, with their alternative texts."""


def write_card(
    folder: str | Path,
    metrics: Metrics,
    recipe: Recipe,
    *,
    repo_id: str | None = None,
    baseline: Metrics | None = None,
    license: str | None = None,
) -> Path:
    """Writes README.md into an exported backbone's folder, with the pictures of the run that it lies in.

    Results of `hf-essl evaluate --output RUN/NAME.json` on these weights are told as well. What was not measured is
    left out.

    Args:
        folder: config.json and model.safetensors, in the folder of the run.
        metrics: what the run's metrics.json holds.
        repo_id: user/name on the Hub, for the code that loads it; without it the code loads the folder.
        baseline: metrics of another run on the same data set and backbone, for the speed-up over it.
        license: of the weights, by the Hub's name such as apache-2.0; the card names none by itself.

    Returns its path.

    Raises:
        ValueError: for a baseline on other images or another backbone, and for a folder without a backbone.
    """
    folder = Path(folder)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} holds no {file}; give the backbone/ of a finished run")
    if baseline is not None:
        _check_baseline(metrics, baseline)
    found = results(metrics, recipe, read_evaluations(folder.parent, folder))
    card = ModelCard.from_template(
        card_metadata(metrics, recipe, found, repo_id, license),
        template_path=str(TEMPLATE),
        **_sections(folder, metrics, recipe, found, baseline),
        **_pictures(folder),
        loading=loading(folder, repo_id),
        licence=_licence(metrics, license),
    )
    return write_text(folder / CARD, str(card).rstrip() + "\n")


def card_of_run(
    run: str | Path, *, repo_id: str | None = None, baseline: str | Path | None = None, license: str | None = None
) -> Path:
    """Writes the card of a finished run anew, from the files in its folder, into its `backbone/`.

    Raises ValueError as `write_card` does, and where the folder holds no finished run.
    """
    return write_card(
        Path(run) / "backbone",
        read_metrics(run),
        read_recipe(Path(run) / "recipe.yaml"),
        repo_id=repo_id,
        baseline=None if baseline is None else read_metrics(baseline),
        license=license,
    )


def card_on_hub(folder: str | Path, repo_id: str) -> bytes:
    """The card in an exported folder as its repository shows it: the code loads `repo_id` in place of the folder."""
    folder = Path(folder)
    text = (folder / CARD).read_text(encoding="utf-8")
    return text.replace(loading(folder, None), loading(folder, repo_id)).encode()


def card_metadata(
    metrics: Metrics, recipe: Recipe, found: Sequence[Result], repo_id: str | None = None, license: str | None = None
) -> ModelCardData:
    """The YAML head of the card; its model-index holds the accuracies as they were measured."""
    accuracies = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification by the backbone's features",
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            metric_type="accuracy",
            metric_name=f"{result.name} (%)",
            metric_value=result.value,
        )
        for result in found
        if result.dataset
    ]
    name = repo_id.rsplit("/", 1)[-1] if repo_id else metrics.get("run") or metrics["method"]
    on_hub = hub_dataset(metrics["dataset"])
    return ModelCardData(
        license=license,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=_tags(metrics, recipe),
        datasets=[on_hub] if on_hub else None,
        metrics=["accuracy"] if accuracies else None,
        co2_eq_emissions=_emissions(metrics),
        model_name=name if accuracies else None,
        eval_results=accuracies or None,
    )


def _sections(
    folder: Path, metrics: Metrics, recipe: Recipe, found: Sequence[Result], baseline: Metrics | None
) -> dict[str, Any]:
    method = method_title(metrics["method"])
    return {
        "title": f"{method} {metrics['backbone']}, pretrained on {metrics['dataset']}",
        "summary": _summary(method, metrics, recipe),
        "training": card_tables.training_table(folder, metrics, recipe),
        "strategies": card_tables.strategy_table(recipe),
        "results": card_tables.result_table(found),
        "cost": card_tables.cost_table(metrics, recipe),
        "baseline": baseline and card_tables.baseline_table(metrics, baseline),
        "baseline_name": baseline and card_tables.baseline_name(baseline),
        "machine": card_tables.machine_table(metrics, recipe),
        "command": metrics.get("command"),
        "recipe": recipe.redacted().to_yaml().strip(),
        "limits": limits(metrics, recipe, found),
        "citations": citations(metrics["method"]),
    }


def _summary(method: str, metrics: Metrics, recipe: Recipe) -> str:
    strategies = [name for name, is_on in _strategies(recipe).items() if is_on]
    listed = " and ".join([", ".join(strategies[:-1]), strategies[-1]] if len(strategies) > 1 else strategies)
    start = " with the weights that timm publishes" if recipe.model.pretrained else ""
    return (
        f"An image backbone, timm's `{metrics['backbone']}`{start}, pretrained without labels by {method} on "
        f"{metrics['dataset']}, with {listed or 'the plain recipe'} of `hf_essl`. It turns an image into a vector of "
        f"features."
    )


def _strategies(recipe: Recipe) -> dict[str, bool]:
    return {
        "F1-CLR": recipe.training.lr_schedule == "f1_clr",
        "Super Progressive Learning": recipe.views.resolution_schedule == "super_progressive",
        "Hard Augment": recipe.views.selection == "hard",
    }


def _tags(metrics: Metrics, recipe: Recipe) -> list[str]:
    on = [name.lower().replace(" ", "-") for name, is_on in _strategies(recipe).items() if is_on]
    return ["image-feature-extraction", "timm", "self-supervised-learning", metrics["method"], "hf_essl", *on]


def _emissions(metrics: Metrics) -> dict[str, Any] | None:
    """In grams, as the Hub has it."""
    if metrics.get("co2e_kg") is None:
        return None
    return {
        "emissions": 1000 * metrics["co2e_kg"],
        "source": "codecarbon",
        "training_type": "pre-training",
        "hardware_used": metrics.get("device"),
    }


def _pictures(folder: Path) -> dict[str, str]:
    """Copies the run's pictures beside the card, and names those that there are."""
    named: dict[str, str] = {}
    for name, text in PICTURES.items():
        if (folder.parent / name).is_file():
            shutil.copyfile(folder.parent / name, folder / name)
            stem = Path(name).stem
            named |= {f"{stem}_picture": name, f"{stem}_alt": text}
    return named


def _licence(metrics: Metrics, license: str | None) -> str:
    weights = (
        f"The weights are under {license}."
        if license
        else "This card names no licence of the weights: that is for whoever publishes them."
    )
    return f"{weights} The images of {metrics['dataset']} have terms of their own, which the table above states."


def _check_baseline(metrics: Metrics, baseline: Metrics) -> None:
    for key in ("dataset", "backbone", "train_images"):
        ours, theirs = metrics.get(key), baseline.get(key)
        if ours != theirs:
            raise ValueError(f"{key} of the baseline is {theirs}, of the run {ours}; give a baseline of the same")
