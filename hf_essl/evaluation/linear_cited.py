"""The linear evaluation that papers cite: SimSiam's `main_lincls.py`, whose settings the paper's appendix B states."""

import math
from collections.abc import Callable

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.evaluation.features import check_classes, class_targets
from hf_essl.evaluation.linear_probe import (
    BATCH_SIZE,
    EPOCHS,
    LEARNING_RATE,
    Features,
    LinearClassifier,
    check_features,
)


def train_cited(
    augmented: Callable[[], Features],
    *,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> LinearClassifier:
    """Trains the linear layer of a frozen backbone by the protocol, to the letter.

    LARS with momentum 0.9 and no weight decay; weights from N(0, 0.01^2), biases 0; one learning rate per epoch, with
    cosine decay and no warm-up; the last batch of an epoch is short. Features are neither standardized nor cached.
    LARS changes the weights by a thousandth of their norm per step, so the few steps of a small dataset train little.
    Equal inputs and seed give equal results; the global random state does not change.

    Args:
        augmented: returns features, N x D, and labels, N, of newly augmented images; called once per epoch.
        learning_rate: at the start: 0.1 per 256 images of a batch.
        seed: of the first weights and the order of the images.
        report: called with one line per epoch.

    Raises ValueError for epochs or batch_size below 1, shapes that do not match, or features that are not finite.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size are {epochs} and {batch_size}; both must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    linear: nn.Linear | None = None
    for epoch in range(epochs):
        features, labels = augmented()
        check_features("train", features, labels)
        if linear is None:
            classes = check_classes("train", labels)
            linear = _random_linear(features.shape[1], len(classes), generator).to(device)
            # always_adapt: without weight decay timm's Lars is plain SGD
            optimizer = Lars(linear.parameters(), lr=learning_rate, momentum=0.9, weight_decay=0, always_adapt=True)
        optimizer.param_groups[0]["lr"] = rate_of_epoch(epoch, epochs, learning_rate)
        targets = class_targets(labels.to(classes.device), classes)
        loss = _train_epoch(linear, optimizer, features, targets, batch_size, generator)
        report(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}")
        del features, labels, targets  # free them before the next ones are extracted
    assert linear is not None, "there is at least one epoch"
    nothing = torch.zeros(linear.in_features, device=device)
    return LinearClassifier(linear.requires_grad_(False), nothing, torch.ones_like(nothing), classes.to(device))


def rate_of_epoch(epoch: int, epochs: int, learning_rate: float = LEARNING_RATE) -> float:
    """The learning rate throughout an epoch, counted from 0."""
    return learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2


def _random_linear(dimensions: int, classes: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.utils.skip_init(nn.Linear, dimensions, classes)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


@torch.enable_grad()
def _train_epoch(
    linear: nn.Linear,
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    targets: Tensor,
    batch_size: int,
    generator: torch.Generator,
) -> float:
    """One pass over the features in random order; returns the mean loss."""
    device, total = linear.weight.device, torch.zeros((), device=linear.weight.device)
    with torch.autocast(device.type, enabled=False):
        for batch in torch.randperm(len(features), generator=generator).split(batch_size):
            scores = linear(features[batch.to(features.device)].to(device).float())
            loss = F.cross_entropy(scores, targets[batch.to(targets.device)].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
    return total.item() / len(features)
