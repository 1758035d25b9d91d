"""Weighted k-nearest-neighbor accuracy of frozen features, within bounded memory."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from hf_essl.config.fields import Count, Positive, checked, option
from hf_essl.config.training import KNN_K, KNN_TEMPERATURE
from hf_essl.evaluation.features import check_classes, check_labeled, check_same_size
from hf_essl.evaluation.metrics import LabelMetric
from hf_essl.evaluation.task import Protocol, Task


@dataclass(frozen=True)
class KNNSettings:
    """Settings of the kNN protocol."""

    k: Count = option("Neighbors that vote.", KNN_K)
    temperature: Positive = option("Temperature T of the votes, exp(cosine / T).", KNN_TEMPERATURE)


def evaluate_knn(task: Task, settings: KNNSettings) -> dict[str, Any]:
    """The weighted kNN classifier over the features of the training images; nothing is trained."""
    check_votes(settings.k, settings.temperature, task.train_images)  # before the features, which take longest
    bank, labels = task.train_features()
    queries, query_labels = task.test_features()
    metric = KNNAccuracy(bank, labels, settings.k, settings.temperature, task.accelerator)
    accuracy = metric.compute(predictions=queries, references=query_labels)["knn_accuracy"]
    return {"accuracy": accuracy, "feature_dtype": str(bank.dtype).removeprefix("torch.")}


KNN = Protocol("kNN accuracy", "weighted k-nearest-neighbor classifier", evaluate_knn, KNNSettings)


@checked
@torch.inference_mode()
def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: Count = KNN_K,
    temperature: Positive = KNN_TEMPERATURE,
    chunk_size: Count = 4096,
    device: torch.device | str | None = None,
    accelerator: Accelerator | None = None,
) -> float:
    """Top-1 accuracy in percent, [0, 100], of the weighted kNN classifier of Wu et al. 2018 (Sec. 3.4).

    Each of the k bank features nearest to a query, with cosine similarity s, votes for its class with weight
    exp(s / temperature). Features are compared in float32, l2-normalized, one chunk at a time: the memory needed is
    that of chunk_size^2 similarities, for any size of bank and queries.

    With several processes, each classifies its share of the queries and all of them return the accuracy over all:
    call it on all, with the whole bank and all queries.

    Args:
        bank: labeled features, N x D, of any floating dtype.
        bank_labels: N classes, any numbers from 0.
        queries: features to classify, Q x D.
        query_labels: Q classes, from 0.
        k: neighbors that vote.
        temperature: of the votes; the smaller, the more the nearest neighbor decides.
        chunk_size: rows of the bank and of the queries that are compared at once.
        device: where chunks are compared; by default the accelerator's, or where the bank is. The bank stays in place.
        accelerator: provides several processes.

    Raises ValueError for shapes that do not match, k outside [1, N], a temperature not above 0, or features not
    finite.
    """
    check_labeled("bank", bank, bank_labels)
    check_labeled("query", queries, query_labels)
    check_same_size(bank, queries)
    check_votes(k, temperature, len(bank))
    check_classes("bank", bank_labels)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    total, first = len(queries), rank * len(queries) // world
    share = slice(first, (rank + 1) * total // world)
    device = torch.device(device or (accelerator.device if accelerator else bank.device))
    bank_labels, query_labels = bank_labels.to(device), query_labels[share].to(device)
    similarity, indices = _nearest(bank, queries[share], k, chunk_size, device, first)
    correct = torch.zeros((), dtype=torch.long, device=device)
    for rows in _chunks(len(query_labels), chunk_size):
        # relative to the largest similarity, which changes no argmax: exp(1 / temperature) can overflow
        votes = ((similarity[rows] - similarity[rows, :1]) / temperature).exp()  # q x k, best neighbor first
        correct += (_winners(votes, bank_labels[indices[rows]]) == query_labels[rows]).sum()
    if accelerator and world > 1:
        correct = accelerator.reduce(correct.to(accelerator.device), "sum")
    return 100.0 * int(correct) / total


class KNNAccuracy(LabelMetric):
    """`knn_accuracy` as an `evaluate.Metric`: the predictions are features, Q x D, the references their classes.

    Args:
        bank, bank_labels, k, temperature, accelerator: see `knn_accuracy`. With several processes, each needs
            all predictions.

    Example:
        >>> KNNAccuracy(bank, bank_labels).compute(predictions=features, references=labels)
        {'knn_accuracy': 88.0}
    """

    summary = "Top-1 accuracy in percent of the weighted k nearest neighbors in a bank of labeled features."
    prediction = datasets.Sequence(datasets.Value("float32"))

    def __init__(
        self,
        bank: Tensor,
        bank_labels: Tensor,
        k: int = KNN_K,
        temperature: float = KNN_TEMPERATURE,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__()
        self.bank, self.votes, self.accelerator = (bank, bank_labels), (k, temperature), accelerator

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:  # type: ignore[override]
        queries = torch.tensor(predictions), torch.tensor(references)
        accuracy = knn_accuracy(*self.bank, *queries, *self.votes, accelerator=self.accelerator)
        return {"knn_accuracy": accuracy}


def _winners(votes: Tensor, labels: Tensor) -> Tensor:
    """The class with the most votes of each query, Q, from votes and classes of its neighbors, Q x k each.

    Of equal classes the smallest one wins. The memory does not depend on the number or the size of the classes.
    """
    ordered, order = labels.sort(dim=1, stable=True)
    starts = torch.ones_like(ordered)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    slots = starts.cumsum(dim=1) - 1  # numbers the classes of each query from 0
    scores = torch.full_like(votes, -1).scatter_(1, slots, 0).scatter_add_(1, slots, votes.gather(1, order))
    firsts = slots.eq(scores.argmax(dim=1, keepdim=True)).int().argmax(dim=1, keepdim=True)
    return ordered.gather(1, firsts).squeeze(1)


def check_votes(k: int, temperature: float, bank_size: int) -> None:
    """Raises ValueError for k outside [1, bank_size], or a temperature of 0 or below."""
    if not 1 <= k <= bank_size:
        raise ValueError(f"k is {k} with {bank_size} features in the bank; lower k or enlarge the bank")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0, such as {KNN_TEMPERATURE}")


def _nearest(
    bank: Tensor, queries: Tensor, k: int, chunk_size: int, device: torch.device, first: int
) -> tuple[Tensor, Tensor]:
    """Cosine similarities and bank indices of the k nearest of each query, Q x k each, most similar first.

    `first` is the number of the first query, for error messages.
    """
    similarity = torch.full((len(queries), k), -torch.inf, device=device)
    indices = torch.zeros((len(queries), k), dtype=torch.long, device=device)
    for columns in _chunks(len(bank), chunk_size):
        keys = _normalize(bank[columns].to(device), "bank", columns.start)
        for rows in _chunks(len(queries), chunk_size):
            new = _normalize(queries[rows].to(device), "query", first + rows.start) @ keys.T  # q x b
            # a chunk may have fewer rows than k; together with the best so far there are at least k
            new_similarity, new_indices = new.topk(min(k, new.shape[1]), dim=1)
            candidates = torch.cat([similarity[rows], new_similarity], dim=1)
            origins = torch.cat([indices[rows], new_indices + columns.start], dim=1)
            similarity[rows], best = candidates.topk(k, dim=1)
            indices[rows] = origins.gather(1, best)
    return similarity, indices


def _normalize(features: Tensor, name: str, start: int) -> Tensor:
    features = features.float()
    if not torch.isfinite(features).all():
        row = start + int((~torch.isfinite(features)).any(dim=1).nonzero()[0])
        raise ValueError(
            f"{name} features are not finite, first in row {row}; the backbone has diverged, lower learning_rate"
        )
    return F.normalize(features, dim=1)


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
