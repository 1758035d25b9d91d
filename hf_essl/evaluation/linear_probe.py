"""The quick linear probe: a linear classifier on cached features of a frozen backbone, for datasets of any size."""

import math
from dataclasses import dataclass

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from hf_essl.config.fields import Count, NonNegative, NonNegativeInt, Positive, checked
from hf_essl.evaluation.features import check_classes, check_labeled, check_same_size, class_targets

EPOCHS, BATCH_SIZE, LEARNING_RATE = 90, 2048, 0.8
"""Defaults of the paper's appendix B."""
MIN_STEPS = 3_000  # minimum number of optimizer steps: LARS moves the weights by less than 1 % of their norm in each
CHUNK = 16_384  # rows that are in float32 at once

Features = tuple[Tensor, Tensor]


@checked
def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: Count | None = None,
    batch_size: Count = BATCH_SIZE,
    learning_rate: Positive = LEARNING_RATE,
    weight_decay: NonNegative | None = None,
    seed: NonNegativeInt = 0,
    device: torch.device | str | None = None,
) -> float:
    """Top-1 accuracy in percent, [0, 100], of the quick linear probe on frozen features.

    See `train_linear` for the training, its arguments and its errors.

    Args:
        train_features, test_features: N x D and M x D, of any floating dtype.
        train_labels, test_labels: N and M classes, from 0.
    """
    check_features("test", test_features, test_labels)
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


@checked
def train_linear(
    features: Tensor,
    labels: Tensor,
    *,
    epochs: Count | None = None,
    batch_size: Count = BATCH_SIZE,
    learning_rate: Positive = LEARNING_RATE,
    weight_decay: NonNegative | None = None,
    seed: NonNegativeInt = 0,
    device: torch.device | str | None = None,
) -> "LinearClassifier":
    """Trains a linear classifier on cached features with LARS and cosine decay to 0.

    Optimizer, batch size, learning rate and epochs are those of the paper's appendix B; `train_cited` follows it in
    everything. Here no image is augmented, and features are standardized like in the affine-free BatchNorm of MAE's
    probe (Sec. A.1), so that one learning rate suits features of any scale. Two choices help small datasets: at least
    3,000 steps (`MIN_STEPS`), and a weight decay of 1 / N, the L2 penalty of scikit-learn's `LogisticRegression`.
    Equal inputs and seed give equal results; the global random state does not change.

    Args:
        features: N x D, of any floating dtype; only a chunk or a batch at a time is converted to float32.
        labels: N classes, any numbers from 0.
        epochs: passes over the features; by default see `probe_epochs`.
        batch_size: largest batch; an epoch is split into equal batches of at most this size.
        learning_rate: at the start; not scaled with the batch size.
        weight_decay: of the weights only; by default 1 / N. The paper's appendix B has none.
        seed: of the order of the images.
        device: where to train; by default where the features are.

    Raises ValueError for shapes that do not match, features that are not finite, or epochs or batch_size below 1.
    """
    check_features("train", features, labels)
    epochs = epochs or probe_epochs(len(features), batch_size)
    steps = math.ceil(len(features) / batch_size)
    device = torch.device(device or features.device)
    mean, std = (value.to(device) for value in _statistics(features))
    known = check_classes("train", labels)
    linear = zero_linear(features.shape[1], len(known)).to(device)
    optimizer = _lars(linear, learning_rate, 1 / len(features) if weight_decay is None else weight_decay)
    scheduler, generator = CosineAnnealingLR(optimizer, T_max=epochs * steps), torch.Generator().manual_seed(seed)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for _ in range(epochs):
            # equal batches: LARS would give the few images of a short last one the weight of a full step
            for batch in torch.randperm(len(features), generator=generator).to(features.device).tensor_split(steps):
                x = (features[batch].to(device).float() - mean) / std
                targets = class_targets(labels[batch.to(labels.device)].to(known.device), known)
                loss = F.cross_entropy(linear(x), targets.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
    return LinearClassifier(linear.requires_grad_(False), mean, std, known.to(device))


def probe_epochs(images: int, batch_size: int = BATCH_SIZE) -> int:
    """The default number of epochs: the paper's 90, or as many as 3,000 optimizer steps need."""
    return max(EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / batch_size)))


@dataclass(frozen=True)
class LinearClassifier:
    """A trained linear layer, D to C, the means and deviations that standardize its inputs, and the classes, C.

    The D means and deviations are 0 and 1 for a classifier on features as they are.
    """

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


def check_features(name: str, features: Tensor, labels: Tensor) -> None:
    """Raises ValueError for shapes that do not match, and features that are not finite."""
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
