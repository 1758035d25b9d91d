"""Evaluation of a frozen backbone. A further evaluation is one file in this folder and one line in this table."""

from collections.abc import Callable

from hf_essl.evaluation.collapse import feature_std, rankme
from hf_essl.evaluation.features import extract_features
from hf_essl.evaluation.knn import knn_accuracy
from hf_essl.evaluation.linear_probe import linear_probe

EVALUATIONS: dict[str, Callable[..., float]] = {
    "knn": knn_accuracy,
    "linear_probe": linear_probe,
}
"""By name: (train features, train labels, test features, test labels, **options) to top-1 accuracy in percent."""

__all__ = ["EVALUATIONS", "extract_features", "feature_std", "knn_accuracy", "linear_probe", "rankme"]
