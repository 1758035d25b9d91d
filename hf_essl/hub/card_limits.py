"""What a backbone is for and what speaks against relying on it, as far as the run itself tells."""

from __future__ import annotations

from collections.abc import Sequence

from hf_essl.data.builtin import DATASETS
from hf_essl.hub.card_facts import Result
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import Metrics

FEW_IMAGES = 100_000
"""Training images below which a data set is called small; ImageNet has 1.28 million."""


def limits(metrics: Metrics, recipe: Recipe, found: Sequence[Result]) -> str:
    """A Markdown list of sentences that are true of this run."""
    images, dataset = metrics.get("train_images"), metrics["dataset"]
    judged = sorted({result.dataset for result in found if result.dataset})
    lines = [
        "For retrieval, nearest neighbours, linear classifiers on frozen features, or as a start for fine-tuning. It "
        "has no classifier of its own."
    ]
    if images and images < FEW_IMAGES:
        lines.append(
            f"The run has seen {images:,} images, a small data set: a demonstration, not a general-purpose model."
        )
    if dataset in DATASETS and DATASETS[dataset].caveat:
        lines.append(DATASETS[dataset].caveat)
    if judged:
        lines.append(f"Its accuracy was measured on {', '.join(judged)} alone; other images were not tried.")
    else:
        lines.append("Its accuracy was not measured on any data set.")
    knn, start = metrics.get("knn_accuracy"), metrics.get("random_init_knn_accuracy")
    if knn is not None and start is not None and knn <= start:
        lines.append("Its kNN accuracy is not above that before training.")
    if recipe.training.max_steps > 0:
        lines.append(f"max_steps: {recipe.training.max_steps} gave it another length than the recipe's epochs.")
    lines += [
        f"One run with one seed, {recipe.training.seed}: how far results move with the seed was not measured.",
        f"The views had at most {recipe.views.resolution} px; larger ones were not trained on.",
        "Bias, fairness and robustness were not evaluated; the model takes over what its images hold.",
    ]
    return "\n".join(f"- {line}" for line in lines)
