"""Linear probe: a linear classifier trained on the cached features of a frozen backbone."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from hf_essl.config.fields import Count, Positive, option
from hf_essl.evaluation.features import check_classes, check_labeled, check_same_size, class_targets
from hf_essl.evaluation.metrics import Accuracy
from hf_essl.evaluation.task import Protocol, Task

EPOCHS, BATCH_SIZE, LEARNING_RATE = 90, 2048, 0.8
"""Defaults of the paper's appendix B."""
MIN_STEPS = 3_000  # minimum number of optimizer steps: LARS moves the weights by less than 1 % of their norm in each
CHUNK = 16_384  # rows that are in float32 at once

Features = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LinearSettings:
    """Settings of the linear probe."""

    epochs: Count | None = option(
        f"Passes over the training images; by default {EPOCHS}, or as many as {MIN_STEPS:,} steps need."
    )
    learning_rate: Positive = option("Learning rate of LARS at the start.", LEARNING_RATE)
    augment: bool = option(f"Train on features of new crops and flips, extracted at most {EPOCHS} times.", False)


def evaluate_linear(task: Task, settings: LinearSettings) -> dict[str, Any]:
    """The paper's linear probe (appendix B), on cached features or on those of newly augmented images."""
    transform, numbers = task.augmentation(), count(1)

    def augmented() -> Features:
        task.report(f"augmented features {next(numbers)}, of at most {EPOCHS}")
        return task.train_features(transform)

    features, labels = task.train_features()
    epochs = settings.epochs or probe_epochs(len(features))
    classifier = train_linear(
        features,
        labels,
        augmented=augmented if settings.augment else None,
        epochs=epochs,
        learning_rate=settings.learning_rate,
        seed=task.seed,
        device=task.accelerator.device,
    )
    test_features, test_labels = task.test_features()
    predictions = classifier.predict(test_features).cpu()
    accuracy = Accuracy().compute(predictions=predictions, references=test_labels)["accuracy"]
    return {"accuracy": accuracy, "epochs": epochs, "feature_dtype": str(features.dtype).removeprefix("torch.")}


LINEAR = Protocol("Linear probe accuracy", "linear classifier on frozen features", evaluate_linear, LinearSettings)


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: int | None = None,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    weight_decay: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> float:
    """Top-1 accuracy in percent, [0, 100], of a linear classifier on frozen features, as in the paper's appendix B.

    See `train_linear` for the training, its arguments and its errors.

    Args:
        train_features, test_features: N x D and M x D, of any floating dtype.
        train_labels, test_labels: N and M classes, from 0.
    """
    _check("test", test_features, test_labels)
    check_same_size(train_features, test_features)
    classifier = train_linear(
        train_features,
        train_labels,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        device=device,
    )
    predictions = classifier.predict(test_features)
    return 100.0 * int((predictions == test_labels.to(predictions.device)).sum()) / len(predictions)


def train_linear(
    features: Tensor,
    labels: Tensor,
    *,
    augmented: Callable[[], Features] | None = None,
    epochs: int | None = None,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    weight_decay: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> "LinearClassifier":
    """Trains a linear classifier on frozen features by the paper's appendix B, with LARS and cosine decay to 0.

    Features are standardized like in the affine-free BatchNorm of MAE's probe (Sec. A.1), so that one learning rate
    suits features of any scale. Equal inputs and seed give equal results; the global random state does not change.

    Two choices help small datasets and change nothing at ImageNet's size: at least 3,000 steps (`MIN_STEPS`), and a
    weight decay of 1 / N, the L2 penalty of scikit-learn's `LogisticRegression`.

    Args:
        features: N x D, of any floating dtype; only a chunk or a batch at a time is converted to float32.
        labels: N classes, any numbers from 0.
        augmented: returns features and labels of newly augmented images to train on; `features` then only provide the
            statistics. Called once per epoch, and at most 90 times.
        epochs: passes over the features; by default see `probe_epochs`.
        batch_size: largest batch; an epoch is split into equal batches of at most this size.
        learning_rate: at the start; not scaled with the batch size.
        weight_decay: of the weights only; by default 1 / N. The paper's appendix B has none.
        seed: of the order of the images.
        device: where to train; by default where the features are.

    Raises ValueError for shapes that do not match, features that are not finite, or epochs or batch_size below 1.
    """
    _check("train", features, labels)
    if batch_size < 1 or (epochs is not None and epochs < 1):
        raise ValueError(f"epochs and batch_size are {epochs} and {batch_size}; both must be at least 1")
    epochs = epochs or probe_epochs(len(features), batch_size)
    steps = math.ceil(len(features) / batch_size)
    device = torch.device(device or features.device)
    mean, std = (value.to(device) for value in _statistics(features))
    known = check_classes("train", labels)
    linear = zero_linear(features.shape[1], len(known)).to(device)
    optimizer = _lars(linear, learning_rate, 1 / len(features) if weight_decay is None else weight_decay)
    scheduler, generator = CosineAnnealingLR(optimizer, T_max=epochs * steps), torch.Generator().manual_seed(seed)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for rows, classes in _passes((features, labels), augmented, epochs):
            # equal batches: LARS would give the few images of a short last one the weight of a full step
            for batch in torch.randperm(len(rows), generator=generator).to(rows.device).tensor_split(steps):
                x = (rows[batch].to(device).float() - mean) / std
                targets = class_targets(classes[batch.to(classes.device)].to(known.device), known)
                loss = F.cross_entropy(linear(x), targets.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
            del rows, classes  # free them before the next augmented features are extracted
    return LinearClassifier(linear.requires_grad_(False), mean, std, known.to(device))


def probe_epochs(images: int, batch_size: int = BATCH_SIZE) -> int:
    """The default number of epochs: the paper's 90, or as many as 3,000 optimizer steps need."""
    return max(EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / batch_size)))


@dataclass(frozen=True)
class LinearClassifier:
    """A trained linear layer, D to C, the means and deviations, D each, of its inputs, and the classes, C."""

    linear: nn.Linear
    mean: Tensor
    std: Tensor
    classes: Tensor

    @torch.inference_mode()
    def predict(self, features: Tensor) -> Tensor:
        """The classes of M x D features of any floating dtype: M, on the device of the classifier."""
        parts = [self.linear((x.to(self.mean.device).float() - self.mean) / self.std) for x in features.split(CHUNK)]
        return self.classes[torch.cat([scores.argmax(dim=1) for scores in parts])]


def zero_linear(dimensions: int, classes: int) -> nn.Linear:
    """A linear layer that starts at zero and draws no random numbers; other probes start at N(0, 0.01^2).

    Each LARS step moves the weights by about a thousandth of their norm, except from zero, so that the few steps of a
    small dataset would not remove a random start. The problem is convex.
    """
    linear = nn.utils.skip_init(nn.Linear, dimensions, classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _passes(cached: Features, augmented: Callable[[], Features] | None, epochs: int) -> Iterator[Features]:
    """What each epoch trains on; augmented features serve several epochs if there are more than 90."""
    every = math.ceil(epochs / EPOCHS)
    for start in range(0, epochs, every):
        features = augmented() if augmented else cached
        for _ in range(min(every, epochs - start)):
            yield features
        del features


def _check(name: str, features: Tensor, labels: Tensor) -> None:
    check_labeled(name, features, labels)
    if not all(torch.isfinite(chunk).all() for chunk in features.split(CHUNK)):
        raise ValueError(f"{name} features are not finite; the backbone has diverged, lower learning_rate")


def _statistics(features: Tensor) -> Features:
    """The mean of each dimension and the divisor that gives it unit variance, D each."""
    chunks = features.split(CHUNK)
    mean = torch.stack([chunk.float().sum(dim=0) for chunk in chunks]).sum(dim=0) / len(features)
    squares = torch.stack([(chunk.float() - mean).square().sum(dim=0) for chunk in chunks]).sum(dim=0)
    return mean, (squares / len(features) + 1e-6).sqrt()  # BatchNorm's own guard against constant dimensions


def _lars(linear: nn.Linear, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    groups = [{"params": [linear.weight], "weight_decay": weight_decay}, {"params": [linear.bias]}]
    # always_adapt: without it timm's Lars is plain SGD for the bias, which has no weight decay
    return Lars(groups, lr=learning_rate, momentum=0.9, weight_decay=0.0, always_adapt=True)
