"""Metrics of predictions and of features: accuracy as an `evaluate.Metric`, and two that show a collapse."""

from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 16_384  # rows that are converted at once


class LabelMetric(evaluate.Metric):
    """A metric against class labels, built without `evaluate.load`, which may download a script."""

    summary: ClassVar[str]
    prediction: ClassVar[Any]  # the type of one prediction

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": self.prediction, "references": datasets.Value("int64")})
        text = self.summary
        info = evaluate.MetricInfo(description=text, citation="", features=features, inputs_description=text)
        info.format = "numpy"  # refused for sequences as an argument; lists of a million numbers need gigabytes
        return info


class Accuracy(LabelMetric):
    """Top-1 accuracy in percent, [0, 100], of predicted classes.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
        {'accuracy': 75.0}
    """

    summary = "Top-1 accuracy in percent of predicted classes."
    prediction = datasets.Value("int64")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:  # type: ignore[override]
        return {"accuracy": 100.0 * float((predictions == references).mean())}


@torch.no_grad()
def feature_std(z: Tensor) -> Tensor:
    """Standard deviation over the images of l2-normalized features or embeddings, averaged over the dimensions.

    1 / sqrt(D) if they spread over the sphere, 0 if they have collapsed to one point (SimSiam, Fig. 2).

    Args:
        z: N x D, of any floating dtype; computed in float32.

    Returns a scalar tensor on the device of `z`; reading it waits for the device.
    Raises ValueError for another shape, or N below 2.
    """
    _check(z)
    blocks = z.split(BLOCK)
    if len(blocks) == 1:
        return F.normalize(z.float(), dim=1).std(dim=0).mean()
    sums = [F.normalize(block.float(), dim=1).sum(dim=0) for block in blocks]
    mean = torch.stack(sums).sum(dim=0) / len(z)
    squares = [(F.normalize(block.float(), dim=1) - mean).square().sum(dim=0) for block in blocks]
    return (torch.stack(squares).sum(dim=0) / (len(z) - 1)).sqrt().mean()


@torch.no_grad()
def rankme(z: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of features, between 1 and min(N, D): exp of the entropy of their singular values.

    Eq. 1 and 2 of RankMe (Garrido et al., ICML 2023). N should be well above D. The cost is O(N D^2): a singular value
    decomposition in float32, or for more than 16,384 rows one of their D x D products, summed in float64 by blocks.

    Args:
        z: N x D, of any floating dtype.
        eps: added to the normalized singular values, as published.

    Raises ValueError for another shape, N below 2, or values that are not finite.
    """
    _check(z)
    if not all(block.isfinite().all() for block in z.split(BLOCK)):
        raise ValueError("the features are not finite; the model has diverged, lower learning_rate")
    singular_values = torch.linalg.svdvals(z.float()) if len(z) <= BLOCK else _singular_values(z)
    total = singular_values.sum()
    p = (singular_values / total if total > 0 else singular_values) + eps  # rank 1 if all features are zero
    return torch.exp(-(p * p.log()).sum()).item()


def _singular_values(z: Tensor) -> Tensor:
    """The singular values of N x D as square roots of the eigenvalues of its D x D product; needs no copy of `z`."""
    product = z.new_zeros(z.shape[1], z.shape[1], dtype=torch.float64)
    for block in z.split(BLOCK):
        block = block.double()
        product.addmm_(block.T, block)
    return torch.linalg.eigvalsh(product).clamp(min=0).sqrt()


def _check(z: Tensor) -> None:
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"the features have shape {tuple(z.shape)}; it must be N x D with N at least 2")
