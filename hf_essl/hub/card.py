"""The model card of a run: README.md next to the exported backbone, made from the run's own files."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_essl.common import write_text
from hf_essl.hub.card_facts import Result, read_evaluations, results, strategies
from hf_essl.hub.card_sections import library_of, loading, sections
from hf_essl.recipe import Recipe, read_recipe
from hf_essl.reporting.metrics import Metrics, read_metrics
from hf_essl.run_folder import CONFIG, RECIPE, WEIGHTS
from hf_essl.schedules import check_schedule

TEMPLATE = Path(__file__).with_name("card_template.md")
CARD = "README.md"
PICTURES = ("curves.png", "views.png", "neighbors.png")
LOADING_BEGINS, LOADING_ENDS = "## How to load it\n\n", "\n\n## What was trained\n"  # headings of the template


def write_card(
    folder: str | Path,
    metrics: Metrics,
    recipe: Recipe,
    *,
    repo_id: str | None = None,
    baseline: Metrics | None = None,
    license: str | None = None,
) -> Path:
    """Writes README.md into the folder of an exported backbone, and copies the pictures of its run there.

    It includes the results of `hf-essl evaluate --output RUN/NAME.json` for these weights, and no unmeasured values.

    Args:
        folder: contains config.json and model.safetensors, and is in the folder of the run.
        metrics: the content of the run's metrics.json.
        repo_id: user/name on the Hub, from which the card's code loads the backbone; by default it loads the folder.
        baseline: metrics of another run on the same dataset and backbone, for the speed-up over it.
        license: of the weights, by its name on the Hub such as apache-2.0; by default the card names none.

    Returns the path of the card.
    Raises ValueError for a folder without a backbone, an unknown schedule, or a baseline on another dataset or
    backbone.
    """
    folder = Path(folder)
    _check(folder, metrics, recipe, metrics if baseline is None else baseline)
    found = results(metrics, recipe, read_evaluations(folder.parent, folder))
    pictures = [name for name in PICTURES if (folder.parent / name).is_file()]
    for name in pictures:
        shutil.copyfile(folder.parent / name, folder / name)
    card = ModelCard.from_template(
        _metadata(library_of(folder), metrics, recipe, found, repo_id, license),
        template_path=str(TEMPLATE),
        **sections(folder, metrics, recipe, found, baseline),
        loading=loading(folder, repo_id),
        pictures=pictures,
        license=license,
    )
    return write_text(folder / CARD, str(card).rstrip() + "\n")


def card_of_run(
    run: str | Path, *, repo_id: str | None = None, baseline: str | Path | None = None, license: str | None = None
) -> Path:
    """Writes the card of a finished run into its `backbone/` again, from the files in its folder.

    Args:
        baseline: folder of another finished run.

    Raises ValueError as `write_card`, and for a folder without a finished run.
    """
    return write_card(
        Path(run) / "backbone",
        read_metrics(run),
        read_recipe(Path(run) / RECIPE),
        repo_id=repo_id,
        baseline=None if baseline is None else read_metrics(baseline),
        license=license,
    )


def card_on_hub(folder: str | Path, repo_id: str) -> bytes:
    """The card of an exported folder for its repository: the code loads `repo_id` instead of the folder."""
    folder = Path(folder)
    text = (folder / CARD).read_text(encoding="utf-8")
    before, begins, rest = text.partition(LOADING_BEGINS)
    _, ends, after = rest.partition(LOADING_ENDS)
    if not ends:
        return text.encode()  # a card of the user's own
    return f"{before}{begins}{loading(folder, repo_id)}{ends}{after}".encode()


def _metadata(
    library: str, metrics: Metrics, recipe: Recipe, found: Sequence[Result], repo_id: str | None, license: str | None
) -> ModelCardData:
    """The YAML head of the card; its model-index contains the measured accuracies."""
    accuracies = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification on the backbone's features",
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            metric_type="accuracy",
            metric_name=f"{result.name} (%)",
            metric_value=round(result.value, 2),
        )
        for result in found
        if result.dataset
    ]
    used = [name.lower().replace(" ", "-") for name, is_used in strategies(recipe).items() if is_used]
    dataset, co2e = metrics["dataset"], metrics.get("co2e_kg")
    emissions = {
        "emissions": float(f"{1000 * (co2e or 0):.3g}"),  # in grams
        "source": "codecarbon",
        "training_type": "pre-training",
        "hardware_used": metrics.get("device"),
    }
    return ModelCardData(
        license=license,
        library_name="hf_essl" if library == "module" else library,
        pipeline_tag="image-feature-extraction",
        tags=["image-feature-extraction", library, "self-supervised-learning", metrics["method"], "hf_essl", *used],
        datasets=[dataset] if dataset.count("/") == 1 else None,  # a Hub id; names of folders contain no slash
        metrics=["accuracy"] if accuracies else None,
        co2_eq_emissions=None if co2e is None else emissions,
        model_name=(repo_id or metrics.get("run") or metrics["method"]).rsplit("/", 1)[-1] if accuracies else None,
        eval_results=accuracies or None,
    )


def _check(folder: Path, metrics: Metrics, recipe: Recipe, baseline: Metrics) -> None:
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} does not contain {file}; pass the backbone/ of a finished run")
    check_schedule(recipe.training)
    for key in ("dataset", "backbone", "train_images"):
        ours, theirs = metrics.get(key), baseline.get(key)
        if ours != theirs:
            raise ValueError(f"{key} of the baseline is {theirs}, of the run {ours}; choose a baseline with the same")
