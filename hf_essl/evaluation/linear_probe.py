"""Linear probe: a linear classifier trained on the cached features of a frozen backbone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from hf_essl.evaluation.features import check_classes, check_labelled, check_same_size


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: int = 90,
    batch_size: int = 2048,
    learning_rate: float = 0.8,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    seed: int = 0,
) -> float:
    """Top-1 accuracy in percent, [0, 100], of a linear classifier on frozen features, as in the paper's appendix B.

    LARS, cosine to 0. Features are standardised by the training statistics, as the affine-free BatchNorm before the
    classifier does in the field's probes (MAE, Sec. A.1): a learning rate tuned for one backbone then fits another,
    whatever the scale of its features. They are fixed, so their exact statistics need no running average. The
    features stay as cached: no augmentation, hence a little below a probe that augments. Equal inputs and seed
    give equal results; the global random state is left alone. It runs on the device of `train_features`.

    Args:
        train_features, test_features: N x D and M x D.
        train_labels, test_labels: N and M classes, from 0.
        epochs: passes over the training features.
        batch_size: largest batch; an epoch is split into equal batches of at most that.
        learning_rate: at the start, for LARS with trust coefficient 0.001; not scaled with the batch.
        weight_decay, momentum: of LARS.
        seed: of the order of the images.

    Raises:
        ValueError: for shapes that do not match, features that are not finite, or an epoch or batch below 1.
    """
    for name, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        check_labelled(name, features, labels)
        if not torch.isfinite(features).all():
            raise ValueError(f"{name} features are not finite; the backbone has diverged, lower learning_rate")
    check_same_size(train_features, test_features)
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size are {epochs} and {batch_size}; both must be at least 1")
    device = train_features.device
    train, mean, std = _standardize(train_features.float())
    classifier = _classifier(train.shape[1], check_classes("train", train_labels)).to(device)
    steps = math.ceil(len(train) / batch_size)
    optimizer, scheduler = _optimizer(classifier, epochs * steps, learning_rate, weight_decay, momentum)
    labels, generator = train_labels.to(device), torch.Generator().manual_seed(seed)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for _ in range(epochs):
            # equal batches: LARS would give the few images of a short last one the weight of a full step
            for batch in torch.randperm(len(train), generator=generator).to(device).tensor_split(steps):
                loss = F.cross_entropy(classifier(train[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
    with torch.inference_mode():
        predictions = classifier((test_features.to(device).float() - mean) / std).argmax(dim=1)
        return 100.0 * int((predictions == test_labels.to(device)).sum()) / len(predictions)


def _standardize(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zero mean and unit variance in each dimension; also the mean and the divisor, D each."""
    mean = features.mean(dim=0)
    std = (features.var(dim=0, correction=0) + 1e-6).sqrt()  # BatchNorm's own guard against constant dimensions
    return (features - mean) / std, mean, std


def _classifier(dimensions: int, classes: int) -> nn.Linear:
    """Zero weights, where the field's probes start at N(0, 0.01^2).

    The problem is convex, and from zero LARS takes its first step as plain SGD. Later ones move the weights by about a
    thousandth of their norm: the few steps of a small dataset would leave a random start in the classifier.
    """
    classifier = nn.utils.skip_init(nn.Linear, dimensions, classes)  # draws nothing from the global generator
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


def _optimizer(classifier: nn.Linear, steps: int, learning_rate: float, weight_decay: float, momentum: float):
    from timm.optim import Lars  # importing timm takes seconds

    # always_adapt: without it timm's Lars is plain SGD wherever the weight decay is 0
    optimizer = Lars(
        classifier.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay, always_adapt=True
    )
    return optimizer, CosineAnnealingLR(optimizer, T_max=steps)
