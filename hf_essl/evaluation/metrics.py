"""The accuracies as `evaluate.Metric` classes, made without `evaluate.load`, which may fetch a script."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hf_essl.evaluation.knn import knn_accuracy


class Accuracy(evaluate.Metric):
    """Top-1 accuracy in percent, [0, 100], of predicted classes.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
        {'accuracy': 75.0}
    """

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return _describe("Top-1 accuracy in percent of predicted classes.", datasets.Value("int64"))

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:  # type: ignore[override]
        return {"accuracy": 100.0 * float((predictions == references).mean())}


class KNNAccuracy(evaluate.Metric):
    """Top-1 accuracy in percent, [0, 100], of the weighted k nearest neighbours (Wu et al. 2018) in a labelled bank.

    The predictions are features, Q x D, and the references their Q classes.

    Args:
        bank: labelled features, N x D, of any floating dtype.
        bank_labels: N classes, from 0.
        k, temperature, device, accelerator: as `hf_essl.knn_accuracy` takes them. Under several processes each one
            computes with all of the queries.

    Example:
        >>> KNNAccuracy(bank, bank_labels, k=20).compute(predictions=features, references=labels)
        {'knn_accuracy': 88.0}
    """

    def __init__(
        self,
        bank: Tensor,
        bank_labels: Tensor,
        k: int = 20,
        temperature: float = 0.07,
        device: torch.device | str | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__(keep_in_memory=True)
        self.bank, self.bank_labels, self.k, self.temperature = bank, bank_labels, k, temperature
        self.device, self.accelerator = device, accelerator

    def _info(self) -> evaluate.MetricInfo:
        text = "Top-1 accuracy in percent of the weighted k nearest neighbours in a bank of labelled features."
        return _describe(text, datasets.Sequence(datasets.Value("float32")))

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:  # type: ignore[override]
        accuracy = knn_accuracy(
            self.bank,
            self.bank_labels,
            torch.tensor(predictions),
            torch.tensor(references),
            self.k,
            self.temperature,
            device=self.device,
            accelerator=self.accelerator,
        )
        return {"knn_accuracy": accuracy}


def _describe(text: str, predictions: Any) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": predictions, "references": datasets.Value("int64")})
    info = evaluate.MetricInfo(description=text, citation="", features=features, inputs_description=text)
    info.format = "numpy"  # as an argument it is refused for sequences; lists of a million numbers take gigabytes
    return info
