"""Weighted k-nearest-neighbour accuracy of frozen features, within bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_essl.evaluation.features import check_classes, check_labelled, check_same_size


@torch.inference_mode()
def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = 4096,
) -> float:
    """Top-1 accuracy in percent, [0, 100], of the weighted kNN classifier of Wu et al. 2018 (Sec. 3.4).

    Each of the k bank features nearest to a query by cosine similarity s votes exp(s / temperature) for its class.
    Features are l2-normalised here, in float32. Besides its inputs this holds chunk_size^2 similarities, whatever the
    sizes of bank and queries; it runs on the device of `bank`.

    Args:
        bank: labelled features, N x D.
        bank_labels: N classes, from 0.
        queries: features to classify, Q x D.
        query_labels: Q classes, from 0.
        k: neighbours that vote.
        temperature: of the votes; the smaller, the more the nearest neighbour decides.
        num_classes: classes that can be voted for; by default one more than the largest label of the bank.
        chunk_size: rows of the bank and of the queries that are compared at once.

    Raises:
        ValueError: for shapes that do not match, a k above N, a temperature of 0 or below, or features not finite.
    """
    check_labelled("bank", bank, bank_labels)
    check_labelled("query", queries, query_labels)
    check_same_size(bank, queries)
    classes = check_classes("bank", bank_labels)
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k} with {len(bank)} features in the bank; lower k or enlarge the bank")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0, such as 0.07")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, such as 4096")
    if num_classes is not None and num_classes < classes:
        raise ValueError(f"num_classes is {num_classes} with label {classes - 1} in the bank; take at least {classes}")
    bank_labels, query_labels = bank_labels.to(bank.device), query_labels.to(bank.device)
    similarity, indices = _nearest(bank, queries, k, chunk_size)
    correct = 0
    for rows in _chunks(len(queries), chunk_size):
        # less the largest similarity, which changes no argmax: exp(1 / temperature) alone can overflow
        votes = ((similarity[rows] - similarity[rows, :1]) / temperature).exp()  # q x k, best neighbour first
        scores = votes.new_zeros(len(votes), num_classes or classes).scatter_add_(1, bank_labels[indices[rows]], votes)
        correct += int((scores.argmax(dim=1) == query_labels[rows]).sum())
    return 100.0 * correct / len(queries)


def _nearest(bank: Tensor, queries: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and bank indices of the k nearest of each query, Q x k each, most similar first."""
    similarity = torch.full((len(queries), k), -torch.inf, device=bank.device)
    indices = torch.zeros((len(queries), k), dtype=torch.long, device=bank.device)
    for columns in _chunks(len(bank), chunk_size):
        keys = _normalize(bank[columns], "bank", columns.start)
        for rows in _chunks(len(queries), chunk_size):
            new = _normalize(queries[rows].to(bank.device), "query", rows.start) @ keys.T  # q x b
            # a chunk may hold fewer rows than k; with the best so far there are k
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
