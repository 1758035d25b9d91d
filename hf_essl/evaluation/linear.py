"""The `linear` protocol: a linear classifier on frozen features, as papers cite it or on cached features."""

import math
from dataclasses import dataclass, replace
from typing import Any

from hf_essl.config.fields import Count, Positive, option
from hf_essl.evaluation.linear_cited import train_cited
from hf_essl.evaluation.linear_probe import (
    BATCH_SIZE,
    EPOCHS,
    LEARNING_RATE,
    MIN_STEPS,
    LinearClassifier,
    probe_epochs,
    train_linear,
)
from hf_essl.evaluation.metrics import Accuracy
from hf_essl.evaluation.task import Protocol, Task

CITED, CACHED = "Linear accuracy, SimSiam's protocol", "Linear probe accuracy, cached features"
"""The names of the two accuracies."""


@dataclass(frozen=True)
class LinearSettings:
    """Settings of the linear classifier."""

    epochs: Count | None = option(
        f"Passes over the training images; by default {EPOCHS}, or without augment enough for {MIN_STEPS:,} steps."
    )
    learning_rate: Positive = option("Learning rate of LARS at the start.", LEARNING_RATE)
    augment: bool = option(
        "SimSiam's protocol to the letter, which papers cite: new crops and flips of every image in each epoch.", False
    )
    layers: Count | None = option(
        "Class tokens of a ViT's last N blocks, concatenated, as DINO's protocol does; --pool cls_mean adds the mean "
        "of the patches."
    )


def evaluate_linear(task: Task, settings: LinearSettings) -> dict[str, Any]:
    """SimSiam's linear evaluation with `augment`, otherwise the quick probe on cached features."""
    if settings.layers is not None:
        task = replace(task, loaded=task.loaded.pooled(layers=settings.layers))
    evaluate = _cited if settings.augment else _cached
    classifier, facts = evaluate(task, settings)
    features, labels = task.test_features()
    predictions = classifier.predict(features).cpu()
    return {**Accuracy().compute(predictions=predictions, references=labels), **facts}


LINEAR = Protocol(
    "Linear probe accuracy",
    "linear classifier on frozen features, cached or, with --augment, by SimSiam's protocol",
    evaluate_linear,
    LinearSettings,
)


def _cited(task: Task, settings: LinearSettings) -> tuple[LinearClassifier, dict[str, Any]]:
    epochs, transform = settings.epochs or EPOCHS, task.augmentation()
    steps = epochs * math.ceil(task.train_images / BATCH_SIZE)
    task.report(f"{epochs} epochs of newly augmented images, {steps:,} steps of up to {BATCH_SIZE:,} images")
    if steps < MIN_STEPS:
        task.report(
            f"{steps:,} steps are few: the protocol is made for ImageNet, and LARS barely moves the weights in less "
            f"than {MIN_STEPS:,}; without --augment, the probe adapts to small datasets"
        )
    classifier = train_cited(
        lambda: task.train_features(transform),
        epochs=epochs,
        learning_rate=settings.learning_rate,
        seed=task.seed,
        device=task.accelerator.device,
        report=task.report,
    )
    return classifier, {"title": CITED, "epochs": epochs, "steps": steps}


def _cached(task: Task, settings: LinearSettings) -> tuple[LinearClassifier, dict[str, Any]]:
    features, labels = task.train_features()
    epochs = settings.epochs or probe_epochs(len(features))
    classifier = train_linear(
        features,
        labels,
        epochs=epochs,
        learning_rate=settings.learning_rate,
        seed=task.seed,
        device=task.accelerator.device,
    )
    steps = epochs * math.ceil(len(features) / BATCH_SIZE)
    dtype = str(features.dtype).removeprefix("torch.")
    return classifier, {"title": CACHED, "epochs": epochs, "steps": steps, "feature_dtype": dtype}
