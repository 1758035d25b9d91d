"""The metric classes against scikit-learn, without network access, and the metrics of a collapse."""

import math

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from hf_essl.evaluation import metrics
from hf_essl.evaluation.knn import KNNAccuracy
from hf_essl.evaluation.metrics import Accuracy, feature_std, rankme


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


def noise(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", [16, 128, 1024])
def test_std_of_a_spread_embedding_is_one_over_root_d(d):
    assert feature_std(noise(4096, d)).item() == pytest.approx(1 / math.sqrt(d), rel=0.02)


def test_std_of_a_collapsed_embedding_is_zero():
    assert feature_std(torch.ones(64, 128)).item() == pytest.approx(0, abs=1e-7)
    direction, lengths = noise(1, 128), torch.rand(64, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    assert feature_std(direction * lengths).item() == pytest.approx(0, abs=1e-7)  # one direction, many lengths


def test_std_by_hand():
    # unit vectors (1, 0) and (0, 1): each dimension has 1 and 0, a sample deviation of sqrt(1/2)
    got = feature_std(torch.tensor([[5.0, 0.0], [0.0, 0.1]]))
    assert got.shape == ()
    assert got.item() == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = noise(512, 64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert feature_std(z).dtype == torch.float32
        assert feature_std(z) == feature_std(z.float())
        assert rankme(z) == rankme(z.float())


def test_rank_of_orthogonal_rows_is_their_number():
    # k directions of equal strength: an entropy of log k
    for k in (1, 5, 32):
        z = torch.eye(64)[torch.arange(640) % k]
        assert rankme(z) == pytest.approx(k, rel=1e-3)


def test_rank_by_hand():
    # singular values 3 and 1, shares 3/4 and 1/4: exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 1.7548
    assert rankme(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(1.7548, abs=1e-4)


def test_rank_of_noise_is_nearly_full_and_scale_free():
    z = noise(4096, 64)
    assert 60 < rankme(z) <= 64
    assert rankme(1000 * z) == pytest.approx(rankme(z), rel=1e-4)
    assert rankme(F.normalize(z) * 0) == pytest.approx(1, abs=1e-3)  # every embedding zero


def test_features_that_cannot_be_measured():
    for measure in (feature_std, rankme):
        with pytest.raises(ValueError, match=r"shape \(1, 8\); it must be N x D"):
            measure(torch.ones(1, 8))
        with pytest.raises(ValueError, match="N x D"):
            measure(torch.ones(2, 8, 3))
    with pytest.raises(ValueError, match="not finite; the model has diverged"):
        rankme(torch.full((4, 8), torch.nan))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_many_rows_in_blocks_equal_all_at_once(dtype, monkeypatch):
    torch.manual_seed(0)
    few, lost = torch.randn(700, 5) @ torch.randn(5, 24), torch.ones(700, 24) + 1e-3 * torch.randn(700, 24)
    for features in (torch.randn(700, 24) + 1, few, lost):
        features = features.to(dtype)
        whole = rankme(features), feature_std(features)
        monkeypatch.setattr(metrics, "BLOCK", 64)
        assert rankme(features) == pytest.approx(whole[0], rel=1e-3)
        assert feature_std(features).item() == pytest.approx(whole[1].item(), rel=1e-4)
        monkeypatch.undo()
    monkeypatch.setattr(metrics, "BLOCK", 64)
    with pytest.raises(ValueError, match="not finite"):
        rankme(torch.cat([features, features[:1] * torch.nan]))
