"""Linear probe: a linear classifier trained on the cached features of a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from hf_essl.evaluation.features import check_classes, check_labelled, check_same_size

EPOCHS = 90
MIN_STEPS = 3_000
"""Optimizer steps that a probe takes at least: LARS moves the weights by less than 1 % of their norm in each."""
CHUNK = 16_384  # rows that are held in float32 at once

Features = tuple[Tensor, Tensor]


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: int | None = None,
    batch_size: int = 2048,
    learning_rate: float = 0.8,
    weight_decay: float | None = None,
    momentum: float = 0.9,
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
        momentum=momentum,
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
    batch_size: int = 2048,
    learning_rate: float = 0.8,
    weight_decay: float | None = None,
    momentum: float = 0.9,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LinearClassifier:
    """Trains a linear classifier on frozen features by the paper's appendix B: LARS, batch 2048, 0.8, 90 epochs.

    The learning rate falls by a cosine to 0. Features are standardised by the training statistics, as the affine-free
    BatchNorm before the classifier does in the field's probes (MAE, Sec. A.1): a learning rate tuned for one backbone
    then fits another, whatever the scale of its features. They are fixed, so their exact statistics need no running
    average. Equal inputs and seed give equal results; the global random state is left alone.

    Two defaults serve small datasets and do nothing at ImageNet's size: at least 3,000 steps (`MIN_STEPS`), and one
    unit of L2 penalty in all (`LogisticRegression` of scikit-learn has the same), 1 / N an image.

    Args:
        features: N x D, of any floating dtype. Half precision stays so; a chunk or a batch is float32 at a time.
        labels: N classes, from 0.
        augmented: gives the features and labels of newly augmented images, to be trained on in place of `features`,
            which then give the statistics alone. Called once an epoch, and at most 90 times.
        epochs: passes over the features; by default 90, or as many as make 3,000 steps.
        batch_size: largest batch; an epoch is split into equal batches of at most that.
        learning_rate: at the start, for LARS with trust coefficient 0.001; not scaled with the batch.
        weight_decay: of the weights, and not of the biases; by default 1 / N.
        momentum: of LARS.
        seed: of the order of the images.
        device: where it is trained; by default where the features are.

    Raises:
        ValueError: for shapes that do not match, features that are not finite, or an epoch or batch below 1.
    """
    _check("train", features, labels)
    check_epochs(epochs, batch_size)
    epochs = probe_epochs(len(features), batch_size) if epochs is None else epochs
    steps = math.ceil(len(features) / batch_size)
    device = torch.device(device or features.device)
    mean, std = (value.to(device) for value in _statistics(features))
    linear = zero_linear(features.shape[1], check_classes("train", labels)).to(device)
    optimizer = _lars(linear, learning_rate, 1 / len(features) if weight_decay is None else weight_decay, momentum)
    scheduler, generator = CosineAnnealingLR(optimizer, T_max=epochs * steps), torch.Generator().manual_seed(seed)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for rows, classes in _passes((features, labels), augmented, epochs):
            # equal batches: LARS would give the few images of a short last one the weight of a full step
            for batch in torch.randperm(len(rows), generator=generator).to(rows.device).tensor_split(steps):
                x = (rows[batch].to(device).float() - mean) / std
                loss = F.cross_entropy(linear(x), classes[batch.to(classes.device)].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
            del rows, classes  # lest the next augmented features be drawn beside these
    return LinearClassifier(linear.requires_grad_(False), mean, std)


def check_epochs(epochs: int | None, batch_size: int = 2048) -> None:
    """Raises ValueError for an epoch or a batch below 1."""
    if batch_size < 1 or (epochs is not None and epochs < 1):
        raise ValueError(f"epochs and batch_size are {epochs} and {batch_size}; both must be at least 1")


def probe_epochs(images: int, batch_size: int = 2048) -> int:
    """The epochs that a probe takes by default: the paper's 90, or as many as make 3,000 optimizer steps."""
    return max(EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / batch_size)))


@dataclass(frozen=True)
class LinearClassifier:
    """A trained linear layer, D to C, and the D means and deviations that its inputs are standardised by."""

    linear: nn.Linear
    mean: Tensor
    std: Tensor

    @torch.inference_mode()
    def predict(self, features: Tensor) -> Tensor:
        """The classes of M x D features of any floating dtype: M, on the device of the classifier."""
        parts = [self.linear((x.to(self.mean.device).float() - self.mean) / self.std) for x in features.split(CHUNK)]
        return torch.cat([scores.argmax(dim=1) for scores in parts])


def _passes(cached: Features, augmented: Callable[[], Features] | None, epochs: int) -> Iterator[Features]:
    """What each epoch trains on."""
    if augmented is None:
        for _ in range(epochs):
            yield cached
        return
    every = math.ceil(epochs / EPOCHS)
    for start in range(0, epochs, every):
        drawn = augmented()
        for _ in range(min(every, epochs - start)):
            yield drawn
        del drawn


def _check(name: str, features: Tensor, labels: Tensor) -> None:
    check_labelled(name, features, labels)
    if not all(torch.isfinite(chunk).all() for chunk in features.split(CHUNK)):
        raise ValueError(f"{name} features are not finite; the backbone has diverged, lower learning_rate")


def _statistics(features: Tensor) -> Features:
    """The mean of each dimension and what to divide it by for unit variance, D each."""
    chunks = features.split(CHUNK)
    mean = torch.stack([chunk.float().sum(dim=0) for chunk in chunks]).sum(dim=0) / len(features)
    squares = torch.stack([(chunk.float() - mean).square().sum(dim=0) for chunk in chunks]).sum(dim=0)
    return mean, (squares / len(features) + 1e-6).sqrt()  # BatchNorm's own guard against constant dimensions


def zero_linear(dimensions: int, classes: int) -> nn.Linear:
    """Zero weights, where the field's probes start at N(0, 0.01^2).

    The problem is convex, and from zero LARS takes its first step as plain SGD. Later ones move the weights by about a
    thousandth of their norm: the few steps of a small dataset would leave a random start in the classifier.
    """
    linear = nn.utils.skip_init(nn.Linear, dimensions, classes)  # draws nothing from the global generator
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _lars(linear: nn.Linear, learning_rate: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    from timm.optim import Lars  # importing timm takes seconds

    groups = [
        {"params": [linear.weight], "weight_decay": weight_decay},
        {"params": [linear.bias], "weight_decay": 0.0},
    ]
    # always_adapt: without it timm's Lars is plain SGD wherever the weight decay is 0
    return Lars(groups, lr=learning_rate, momentum=momentum, always_adapt=True)
