"""Evaluation of a backbone: features, kNN, linear probe, fine-tuning, and metrics that show a collapse."""

from hf_essl.evaluation.features import extract_features
from hf_essl.evaluation.knn import knn_accuracy
from hf_essl.evaluation.linear_probe import linear_probe
from hf_essl.evaluation.metrics import feature_std, rankme

__all__ = ["extract_features", "feature_std", "knn_accuracy", "linear_probe", "rankme"]
