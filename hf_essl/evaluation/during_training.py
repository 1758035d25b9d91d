"""The evaluation of a run while it trains: kNN, online probe, and what shows a collapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from hf_essl.config import SSLTrainingArguments
from hf_essl.data import ImageDataset
from hf_essl.evaluation.collapse import feature_std, rankme
from hf_essl.evaluation.knn import knn_accuracy
from hf_essl.evaluation.online_probe import OnlineProbe


def evaluate_features(
    extract: Callable[[Any], tuple[Tensor, Tensor | None]],
    queries_from: ImageDataset,
    bank_from: ImageDataset | None,
    args: SSLTrainingArguments,
    accelerator: Accelerator,
    probe: OnlineProbe | None = None,
) -> dict[str, float]:
    """Feature std and RankMe of the query images and, if both sets have labels, accuracies in percent.

    Args:
        extract: the features N x D and labels N of a data set.
        bank_from: the neighbors of the kNN accuracy; there is none if these are the query images themselves.
        args: `knn_k` and `knn_temperature`.
        probe: the classifier that trains alongside the backbone.
    """
    queries, query_labels = extract(queries_from)
    metrics = {"feature_std": feature_std(queries).item(), "rankme": rankme(queries)}
    if query_labels is None:
        return metrics
    if probe is not None:
        metrics["probe_accuracy"] = probe.accuracy(queries, query_labels)
    if bank_from is None or bank_from is queries_from:
        return metrics
    bank, bank_labels = extract(bank_from)
    if bank_labels is not None:
        metrics["knn_accuracy"] = knn_accuracy(
            bank,
            bank_labels,
            queries,
            query_labels,
            args.knn_k,
            args.knn_temperature,
            device=args.device,
            accelerator=accelerator,
        )
    return metrics
