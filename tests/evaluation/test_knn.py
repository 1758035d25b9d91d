import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode

import hf_essl
from hf_essl import export_backbone
from hf_essl.config.training import KNN_K, KNN_TEMPERATURE
from hf_essl.data.photo_patches import photo_patches
from hf_essl.evaluation import extract_features, knn_accuracy
from hf_essl.evaluation.backbone import load_backbone
from hf_essl.methods import SSLModel
from tests.distributed.launch import launch


def blobs(seed, n, d, classes, spread):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, d, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return means[labels] + spread * torch.randn(n, d, generator=generator), labels


def scikit_learn(bank, labels, queries, truth, k, temperature):
    """Accuracy in percent of scikit-learn's weighted kNN, in double precision."""
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(bank.double().numpy(), labels.numpy())
    return 100 * reference.score(queries.double().numpy(), truth.numpy())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bank_size=st.integers(20, 300),
    k=st.integers(1, 20),
    temperature=st.sampled_from([0.02, 0.07, 0.5]),
    chunk_size=st.sampled_from([1, 7, 64, 4096]),
)
def test_equals_scikit_learn(seed, bank_size, k, temperature, chunk_size):
    features, labels = blobs(seed, bank_size + 30, 8, 5, 1.5)
    bank, queries = features[:bank_size], features[bank_size:]
    expected = scikit_learn(bank, labels[:bank_size], queries, labels[bank_size:], k, temperature)
    got = knn_accuracy(bank, labels[:bank_size], queries, labels[bank_size:], k, temperature, chunk_size=chunk_size)
    assert got == pytest.approx(expected)


def test_a_published_backbone_equals_scikit_learn(tmp_path):
    """HF_ESSL_BACKBONE names a Hub id or a folder; without it a backbone is published here, untrained."""
    source = os.environ.get("HF_ESSL_BACKBONE")
    if source is None:
        torch.manual_seed(0)
        model = SSLModel.from_timm("test_resnet", method_args={"projector_dim": 16, "predictor_hidden": 8})
        source = export_backbone(model, tmp_path / "backbone", input_size=48)
    backbone, resolution, mean, std, *_ = load_backbone(source)
    split = {}
    for name, count in (("train", 768), ("validation", 256)):
        whole = photo_patches(name, resolution)
        # training patches cycle through the classes, evaluation patches are sorted by class
        images = whole.take(range(count) if name == "train" else range(0, len(whole), len(whole) // count))
        split[name] = extract_features(backbone, images, resolution=resolution, mean=mean, std=std)
    (bank, labels), (queries, truth) = split["train"], split["validation"]
    for k, temperature in ((KNN_K, KNN_TEMPERATURE), (1, 0.07), (200, 0.5)):
        got = knn_accuracy(bank, labels, queries, truth, k, temperature)
        # a tie of two votes may go either way
        assert got == pytest.approx(scikit_learn(bank, labels, queries, truth, k, temperature), abs=100 / 256)
        assert got > 3 * 100 / 16  # chance is a sixteenth


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.4), (torch.bfloat16, 1.5)])
def test_a_bank_in_half_precision_equals_scikit_learn(dtype, tolerance):
    features, labels = blobs(3, 3000, 64, 10, 3.0)
    bank, queries = features[:2000], features[2000:]
    expected = scikit_learn(bank, labels[:2000], queries, labels[2000:], KNN_K, KNN_TEMPERATURE)
    assert 50 < expected < 99
    got = knn_accuracy(bank.to(dtype), labels[:2000], queries.to(dtype), labels[2000:])
    assert got == pytest.approx(expected, abs=tolerance)
    # of the rounded features themselves it is exact
    rounded = scikit_learn(bank.to(dtype), labels[:2000], queries.to(dtype), labels[2000:], KNN_K, KNN_TEMPERATURE)
    assert got == pytest.approx(rounded, abs=0.1)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ids=st.lists(st.integers(0, 2**62), min_size=5, max_size=5, unique=True),
    k=st.integers(1, 60),
)
def test_class_ids_of_any_size_equal_scikit_learn(seed, ids, k):
    features, labels = blobs(seed, 150, 8, 5, 1.5)
    labels = torch.tensor(ids)[labels]
    bank, queries, known, truth = features[:100], features[100:], labels[:100], labels[100:]
    expected = scikit_learn(bank, known, queries, truth, k, 0.07)
    assert knn_accuracy(bank, known, queries, truth, k, 0.07, chunk_size=32) == pytest.approx(expected)


def test_ids_near_two_billion_need_no_memory_for_each_of_them():
    features, labels = blobs(0, 264, 8, 3, 0.1)
    ids = torch.tensor([5, 1_999_999_999, 2_000_000_000])[labels]
    bank, queries = features[:200], features[200:]
    with LargestTensor() as made:
        assert knn_accuracy(bank, ids[:200], queries, ids[200:]) == knn_accuracy(
            bank, labels[:200], queries, labels[200:]
        )
    assert made.largest < 1e6  # the similarities are 51 kB; a column for each id would need 512 GB


def at(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_by_hand_near_neighbor_against_two_far_ones():
    # cosines to the query 0.985 (class 0), 0.5 and 0.5 (class 1)
    bank, labels, query = at(10, 60, -60), torch.tensor([0, 1, 1]), at(0)
    # at T = 0.07 exp(0.985 / T) beats 2 exp(0.5 / T); at T = 10 the votes are nearly equal, and two beat one
    assert knn_accuracy(bank, labels, query, torch.tensor([0]), k=3, temperature=0.07) == 100.0
    assert knn_accuracy(bank, labels, query, torch.tensor([1]), k=3, temperature=10.0) == 100.0
    assert knn_accuracy(bank, labels, query, torch.tensor([1]), k=1, temperature=10.0) == 0.0


def test_by_hand_the_share_of_right_queries_in_percent():
    bank, labels = at(0, 90, 180), torch.tensor([0, 1, 2])
    queries, truth = at(5, 80, 185, 100), torch.tensor([0, 1, 2, 0])
    assert knn_accuracy(bank, labels, queries, truth, k=1) == 75.0


def test_length_does_not_count():
    bank, labels = at(0, 90) * torch.tensor([[0.01], [100.0]]), torch.tensor([0, 1])
    assert knn_accuracy(bank, labels, 50 * at(40), torch.tensor([0]), k=1) == 100.0


def test_a_small_temperature_does_not_overflow():
    # exp(1 / 0.001) exceeds float32
    assert (
        knn_accuracy(at(0, 90), torch.tensor([0, 1]), at(1, 89), torch.tensor([0, 1]), k=2, temperature=0.001) == 100.0
    )


def test_half_precision_and_a_class_that_the_bank_lacks():
    bank, labels = at(0, 90).half(), torch.tensor([0, 1])
    assert knn_accuracy(bank, labels, at(1, 2).half(), torch.tensor([0, 7]), k=1) == 50.0


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that an operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


def test_memory_is_bounded_for_a_million_features():
    bank = torch.ones(1, 128).expand(1_000_000, 128)  # one row, seen a million times
    labels = torch.zeros(1_000_000, dtype=torch.long)
    with LargestTensor() as made:
        assert knn_accuracy(bank, labels, bank[:256], labels[:256]) == 100.0
    assert made.largest < 100e6  # of the 0.5 GB of such a bank; a full matrix of similarities is 1 GB


PEAK = """
import torch
from hf_essl.evaluation import knn_accuracy
bank = torch.empty(1_000_000, 512, dtype=torch.float16)
for rows in bank.split(50_000):
    rows.copy_(torch.randn(50_000, 512))
labels = torch.arange(1_000_000) % 1000
queries = bank[::8000].clone()
assert knn_accuracy(bank, labels, queries, labels[::8000], k=1) == 100.0
assert knn_accuracy(bank, labels, queries, labels[::8000]) == 100.0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of the memory is read from /proc")
def test_a_million_features_peak_under_3_gb():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    peak = 1024 * int(done.stdout)
    assert 1.02e9 < peak < 3e9  # the bank alone is 1.02 GB


def environment():
    paths = os.pathsep.join([str(Path(hf_essl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def on_two_processes():
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    for count in (30, 31, 2, 1):  # an odd number, and fewer queries than processes
        features, labels = blobs(1, 200 + count, 8, 5, 2.0)
        arguments = (features[:200], labels[:200], features[200:], labels[200:], 5)
        alone = knn_accuracy(*arguments)
        assert knn_accuracy(*arguments, accelerator=accelerator) == alone, count
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_agree_with_one():
    launch(__file__)


BANK, LABELS = at(0, 90, 180), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 4}, "k is 4 with 3 features in the bank; lower k or enlarge the bank"),
        ({"k": 0}, "k is 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it should be greater than 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"bank_labels": torch.tensor([0, 1])}, r"bank labels have shape \(2,\) for 3 features"),
        ({"bank_labels": torch.tensor([-1, 0, 1])}, "bank labels contain -1"),
        ({"queries": torch.rand(3, 5)}, "2 and 5 dimensions"),
        ({"queries": torch.rand(0, 2), "query_labels": torch.zeros(0)}, r"query features have shape \(0, 2\)"),
        ({"queries": torch.tensor([[1, 0], [torch.nan, 0], [0, 1]])}, "query features are not finite, first in row 1"),
    ],
)
def test_refusals(change, message):
    arguments = {"bank": BANK, "bank_labels": LABELS, "queries": BANK, "query_labels": LABELS, "k": 2} | change
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**arguments)


if __name__ == "__main__":
    on_two_processes()
