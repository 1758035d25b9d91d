"""Weighted k-nearest-neighbour accuracy of frozen features, within bounded memory."""

from __future__ import annotations

import torch
from accelerate import Accelerator
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
    device: torch.device | str | None = None,
    accelerator: Accelerator | None = None,
) -> float:
    """Top-1 accuracy in percent, [0, 100], of the weighted kNN classifier of Wu et al. 2018 (Sec. 3.4).

    Each of the k bank features nearest to a query by cosine similarity s votes exp(s / temperature) for its class.
    Features of any floating dtype are compared in float32, l2-normalised, a chunk at a time: besides its inputs this
    holds chunk_size^2 similarities and no other copy of the bank, whatever the sizes of bank and queries.

    With an accelerator of several processes each one answers its share of the queries, and all of them return the
    accuracy over all; call it on all of them, with the whole bank and all queries.

    Args:
        bank: labelled features, N x D.
        bank_labels: N classes, from 0.
        queries: features to classify, Q x D.
        query_labels: Q classes, from 0.
        k: neighbours that vote.
        temperature: of the votes; the smaller, the more the nearest neighbour decides.
        num_classes: classes that can be voted for; by default one more than the largest label of the bank.
        chunk_size: rows of the bank and of the queries that are compared at once.
        device: where the chunks are compared; by default where the bank is. A bank in host memory stays there.
        accelerator: for several processes.

    Raises:
        ValueError: for shapes that do not match, a k above N, a temperature of 0 or below, or features not finite.
    """
    classes = _check(bank, bank_labels, queries, query_labels, k, temperature, num_classes, chunk_size)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    total, first = len(queries), rank * len(queries) // world
    mine = slice(first, (rank + 1) * total // world)
    device = torch.device(device or bank.device)
    bank_labels, query_labels = bank_labels.to(device), query_labels[mine].to(device)
    similarity, indices = _nearest(bank, queries[mine], k, chunk_size, device, first)
    correct = torch.zeros((), dtype=torch.long, device=device)
    for rows in _chunks(len(query_labels), chunk_size):
        # less the largest similarity, which changes no argmax: exp(1 / temperature) alone can overflow
        votes = ((similarity[rows] - similarity[rows, :1]) / temperature).exp()  # q x k, best neighbour first
        scores = votes.new_zeros(len(votes), classes).scatter_add_(1, bank_labels[indices[rows]], votes)
        correct += (scores.argmax(dim=1) == query_labels[rows]).sum()
    if accelerator and world > 1:
        correct = accelerator.reduce(correct.to(accelerator.device), "sum")
    return 100.0 * int(correct) / total


def check_votes(k: int, temperature: float, bank_size: int) -> None:
    """Raises ValueError for a k above the number of features in the bank, or a temperature of 0 or below."""
    if not 1 <= k <= bank_size:
        raise ValueError(f"k is {k} with {bank_size} features in the bank; lower k or enlarge the bank")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0, such as 0.07")


def _check(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int,
    temperature: float,
    num_classes: int | None,
    chunk_size: int,
) -> int:
    """Refuses what cannot be compared; returns the number of classes that can be voted for."""
    check_labelled("bank", bank, bank_labels)
    check_labelled("query", queries, query_labels)
    check_same_size(bank, queries)
    classes = check_classes("bank", bank_labels)
    check_votes(k, temperature, len(bank))
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, such as 4096")
    if num_classes is not None and num_classes < classes:
        raise ValueError(f"num_classes is {num_classes} with label {classes - 1} in the bank; take at least {classes}")
    return num_classes or classes


def _nearest(
    bank: Tensor, queries: Tensor, k: int, chunk_size: int, device: torch.device, first: int
) -> tuple[Tensor, Tensor]:
    """Cosine similarities and bank indices of the k nearest of each query, Q x k each, most similar first.

    `first` is the number of the first query, for what an error says.
    """
    similarity = torch.full((len(queries), k), -torch.inf, device=device)
    indices = torch.zeros((len(queries), k), dtype=torch.long, device=device)
    for columns in _chunks(len(bank), chunk_size):
        keys = _normalize(bank[columns].to(device), "bank", columns.start)
        for rows in _chunks(len(queries), chunk_size):
            new = _normalize(queries[rows].to(device), "query", first + rows.start) @ keys.T  # q x b
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
