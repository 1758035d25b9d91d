"""The metric classes, against scikit-learn and without a network (tests have none)."""

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from hf_essl.evaluation.metrics import Accuracy, KNNAccuracy


def test_accuracy_equals_scikit_learn():
    rng = np.random.default_rng(0)
    truth, guesses = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    expected = {"accuracy": pytest.approx(100 * accuracy_score(truth, guesses))}
    for make in (np.asarray, torch.as_tensor, list):
        assert Accuracy().compute(predictions=make(guesses), references=make(truth)) == expected
    metric = Accuracy()
    for part in (slice(0, 100), slice(100, 500)):
        metric.add_batch(predictions=guesses[part], references=truth[part])
    assert metric.compute() == expected
    assert Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2]) == {"accuracy": 75.0}


def test_knn_accuracy_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (600,), generator=generator)
    features = torch.randn(5, 16, generator=generator)[labels] + 1.5 * torch.randn(600, 16, generator=generator)
    reference = KNeighborsClassifier(
        10, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.1)
    ).fit(features[:400].double().numpy(), labels[:400].numpy())
    expected = 100 * reference.score(features[400:].double().numpy(), labels[400:].numpy())
    metric = KNNAccuracy(features[:400], labels[:400], k=10, temperature=0.1)
    got = metric.compute(predictions=features[400:], references=labels[400:])
    assert got == {"knn_accuracy": pytest.approx(expected)}
    for part in (slice(400, 410), slice(410, 600)):
        metric.add_batch(predictions=features[part], references=labels[part])
    assert metric.compute() == got


def test_they_are_metrics_that_combine_and_name_themselves():
    metric = evaluate.combine([Accuracy(), Accuracy()])
    assert metric.compute(predictions=[1, 1], references=[1, 0])["accuracy_0_accuracy"] == 50.0
    assert isinstance(Accuracy(), evaluate.Metric) and Accuracy().name == "accuracy"
    assert KNNAccuracy(torch.eye(2), torch.arange(2), k=1).name == "knn_accuracy"


def test_wrong_inputs():
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        Accuracy().compute(predictions=[1], references=[1, 0])
    with pytest.raises(ValueError, match="k is 3 with 2 features in the bank"):
        KNNAccuracy(torch.eye(2), torch.arange(2), k=3).compute(predictions=torch.eye(2), references=[0, 1])
