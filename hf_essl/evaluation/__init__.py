"""Evaluation of a frozen backbone. A further protocol is one file in this folder and one line in `protocols.py`."""

from hf_essl.evaluation.collapse import feature_std, rankme
from hf_essl.evaluation.features import extract_features
from hf_essl.evaluation.knn import knn_accuracy
from hf_essl.evaluation.linear_probe import linear_probe

__all__ = ["extract_features", "feature_std", "knn_accuracy", "linear_probe", "rankme"]
