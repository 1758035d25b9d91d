"""The three evaluations of `hf-essl evaluate`, each from a loaded backbone and labelled images to an accuracy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_essl.data import ImageDataset, Images, image_count
from hf_essl.evaluation.augment import CropAndFlip
from hf_essl.evaluation.backbone import LoadedBackbone
from hf_essl.evaluation.features import extract_features
from hf_essl.evaluation.finetune import LEARNING_RATES, finetune
from hf_essl.evaluation.knn import check_votes
from hf_essl.evaluation.linear_probe import EPOCHS, check_epochs, probe_epochs, train_linear
from hf_essl.evaluation.metrics import Accuracy, KNNAccuracy


@dataclass(frozen=True)
class Task:
    """A backbone, at its resolution, and the labelled images to judge it by.

    train, test: labelled images; a test image of a class that train lacks counts as wrong.
    indices: the training images to take; None for all.
    batch_size: images a batch and process in feature extraction, and a batch over all processes in fine-tuning.
    report: takes a line of text now and then.
    """

    loaded: LoadedBackbone
    train: ImageDataset
    test: ImageDataset
    accelerator: Accelerator
    indices: Sequence[int] | None = None
    batch_size: int = 256
    num_workers: int = 0
    seed: int = 0
    report: Callable[[str], None] = print

    @property
    def train_images(self) -> int:
        return len(self.indices) if self.indices is not None else image_count(self.train) or 0

    @property
    def test_images(self) -> int:
        return image_count(self.test) or 0

    def train_features(self, transform: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Features and labels of the training images, in float16 where they are many."""
        return self._features(self.train, self.indices, transform)

    def test_features(self) -> tuple[Tensor, Tensor]:
        """Features and labels of the test images."""
        return self._features(self.test, None, None)

    def _features(self, images: ImageDataset, indices: Sequence[int] | None, transform) -> tuple[Tensor, Tensor]:
        features, labels = extract_features(
            self.loaded.backbone,
            images,
            resolution=self.loaded.resolution,
            mean=self.loaded.mean,
            std=self.loaded.std,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            accelerator=self.accelerator,
            indices=indices,
            transform=transform,
        )
        assert labels is not None, "`labelled` has checked"
        return features, labels


def labelled(images: Images, name: str) -> tuple[ImageDataset, ImageDataset]:
    """The labelled training and test images of a dataset.

    Raises:
        ValueError: where either has no labels or is not there.
    """
    if images.bank is None or images.bank.labels is None:
        raise ValueError(f"dataset is {name}, whose training images have no labels; name them with --label_column")
    if images.eval is None or images.eval.labels is None:
        raise ValueError(
            f"dataset is {name}, which holds no labelled images to evaluate on; name their split with "
            f"--eval_split, or hold some out with --eval_holdout 0.1"
        )
    return images.bank, images.eval


def draw(total: int, count: int | None, seed: int = 0) -> list[int] | None:
    """`count` of `total` positions, at random and in order; None, all of them, where there are no more.

    At random, since stored images may be sorted by class, or go round the classes.

    Raises:
        ValueError: for a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"max_train_samples is {count}; it is a number of images from 1 on, or nothing for all")
    if count is None or count >= total:
        return None
    return sorted(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].tolist())


def evaluate_knn(task: Task, k: int = 20, temperature: float = 0.07) -> dict[str, Any]:
    """The weighted kNN classifier over the training images' features; nothing is trained."""
    check_votes(k, temperature, task.train_images)
    bank, labels = task.train_features()
    queries, truth = task.test_features()
    metric = KNNAccuracy(bank, labels, k, temperature, task.accelerator.device, task.accelerator)
    accuracy = metric.compute(predictions=queries, references=truth)["knn_accuracy"]
    return {"accuracy": accuracy, "k": k, "temperature": temperature, "feature_dtype": _name(bank)}


def evaluate_linear(
    task: Task, epochs: int | None = None, learning_rate: float = 0.8, augment: bool = False
) -> dict[str, Any]:
    """The paper's linear probe (appendix B) on frozen features: cached ones, or anew each epoch where augmented."""
    check_epochs(epochs)  # before the features, which take longest
    loaded, rank = task.loaded, task.accelerator.process_index
    views = CropAndFlip(loaded.resolution, loaded.mean, loaded.std, task.seed, rank)
    drawn = 0

    def augmented() -> tuple[Tensor, Tensor]:
        nonlocal drawn
        drawn += 1
        task.report(f"augmented features {drawn}, of at most {EPOCHS}")
        return task.train_features(views)

    features, labels = task.train_features()
    classifier = train_linear(
        features,
        labels,
        augmented=augmented if augment else None,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=task.seed,
        device=task.accelerator.device,
    )
    queries, truth = task.test_features()
    accuracy = Accuracy().compute(predictions=classifier.predict(queries).cpu(), references=truth)["accuracy"]
    epochs = probe_epochs(len(features)) if epochs is None else epochs
    settings = {"epochs": epochs, "learning_rate": learning_rate, "augment": augment}
    return {"accuracy": accuracy, **settings, "feature_dtype": _name(features)}


def evaluate_finetune(
    task: Task, epochs: int = 100, learning_rate: float | None = None, optimizer: str = "sgd"
) -> dict[str, Any]:
    """Full fine-tuning of backbone and head."""
    accuracy = finetune(
        task.loaded.backbone,
        task.train,
        task.test,
        resolution=task.loaded.resolution,
        mean=task.loaded.mean,
        std=task.loaded.std,
        epochs=epochs,
        batch_size=task.batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=task.seed,
        indices=task.indices,
        num_workers=task.num_workers,
        accelerator=task.accelerator,
        progress=task.report,
    )
    rate = LEARNING_RATES[optimizer] if learning_rate is None else learning_rate
    return {"accuracy": accuracy, "epochs": epochs, "learning_rate": rate, "optimizer": optimizer}


class Protocol(NamedTuple):
    """An evaluation by its name.

    title: of its accuracy, for people.
    run: (task, **settings of its own) to the accuracy in percent and the settings that it was reached with.
    batch_size: images a batch, where nothing else is asked for.
    """

    title: str
    run: Callable[..., dict[str, Any]]
    batch_size: int = 256

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of its own settings."""
        return tuple(inspect.signature(self.run).parameters)[1:]


PROTOCOLS = {
    "knn": Protocol("kNN accuracy", evaluate_knn),
    "linear": Protocol("Linear probe accuracy", evaluate_linear),
    "finetune": Protocol("Fine-tuned accuracy", evaluate_finetune, batch_size=128),
}


def _name(features: Tensor) -> str:
    return str(features.dtype).removeprefix("torch.")
