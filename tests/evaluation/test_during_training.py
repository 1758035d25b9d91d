"""The online probe learns, and training is bit for bit what it is without it."""

import copy

import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_essl.config import SSLTrainingArguments
from hf_essl.data import NO_LABEL, CachedImages
from hf_essl.evaluation import knn_accuracy
from hf_essl.evaluation.during_training import OnlineProbe, captured_features, evaluate_features
from hf_essl.evaluation.metrics import rankme
from hf_essl.methods import METHODS, SSLModel
from tests.distributed.launch import launch


def blobs(n, d, classes, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, d, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return means[labels] + spread * torch.randn(n, d, generator=generator), labels


def train(method, steps, probe=None):
    """A method's state after a few steps, with dropout in its backbone and maybe a probe alongside."""
    torch.manual_seed(0)
    small = METHODS[method].small_args
    model = SSLModel.from_timm("test_resnet", method, backbone_args={"drop_rate": 0.5}, method_args=small).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        views, labels = torch.randn(2, 8, 3, 32, 32), torch.randint(3, (8,))
        with captured_features(model.projector) as seen:
            loss = model(*views)["loss"].mean()
        if probe is not None:
            assert len(seen) == 2 and seen[0].shape == (8, 96) and not seen[0].requires_grad
            probe.update(seen[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
    return model.state_dict(), torch.get_rng_state()


@pytest.mark.parametrize("method", ["simsiam", "byol", "dino"])
def test_training_is_bit_identical_with_and_without_a_probe(method):
    plain, state = train(method, 4)
    probe = OnlineProbe(96, 3)
    probed, probed_state = train(method, 4, probe)
    assert all(torch.equal(value, probed[name]) for name, value in plain.items())
    assert torch.equal(state, probed_state)
    assert probe.linear.weight.abs().sum() > 0  # it did learn


def test_no_gradient_reaches_the_backbone():
    backbone = torch.nn.Linear(6, 4)
    probe = OnlineProbe(4, 3)
    features = backbone(torch.randn(8, 6))
    assert features.requires_grad
    probe.update(features, torch.randint(3, (8,)))
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for parameter in probe.parameters())
    features.sum().backward()  # its graph is still intact
    assert backbone.weight.grad is not None


@pytest.mark.parametrize(("d", "scale", "offset"), [(16, 1.0, 0.0), (512, 1.0, 0.0), (64, 1000.0, 50.0)])
def test_it_is_close_to_logistic_regression_at_any_scale(d, scale, offset):
    features, labels = blobs(3000, d, 8, 0.4 * d**0.5)
    features = scale * features + offset
    scaler = StandardScaler().fit(features[:2000].numpy())
    reference = LogisticRegression(max_iter=1000).fit(scaler.transform(features[:2000].numpy()), labels[:2000].numpy())
    expected = 100 * reference.score(scaler.transform(features[2000:].numpy()), labels[2000:].numpy())
    probe, order = OnlineProbe(d, 8), torch.Generator().manual_seed(0)
    losses, accuracies = [], []
    for _ in range(400):
        batch = torch.randint(2000, (64,), generator=order)
        found = probe.update(features[batch], labels[batch])
        losses.append(found["probe_loss"].item())
        accuracies.append(found["probe_train_accuracy"].item())
    got = 100 * (probe.predict(features[2000:]) == labels[2000:]).float().mean().item()
    assert losses[0] == pytest.approx(2.0794, abs=1e-3)  # ln 8: it starts knowing nothing
    assert sum(losses[-20:]) / 20 < losses[0] / 2 and sum(accuracies[-20:]) / 20 > 3 * 100 / 8
    assert got > expected - 4


def test_it_resumes_exactly():
    features, labels = blobs(640, 12, 4, 1.0)
    batches = list(zip(features.split(64), labels.split(64), strict=True))
    whole = OnlineProbe(12, 4)
    for batch in batches:
        whole.update(*batch)
    first = OnlineProbe(12, 4)
    for batch in batches[:5]:
        first.update(*batch)
    saved = copy.deepcopy(first.state_dict())
    for batch in batches[5:]:
        first.update(*batch)  # does not change what was saved
    resumed = OnlineProbe(12, 4)
    resumed.load_state_dict(saved)
    for batch in batches[5:]:
        resumed.update(*batch)
    for probe in (first, resumed):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), probe.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), probe.buffers(), strict=True))


def test_its_state_is_read_without_unpickling(tmp_path):
    probe = OnlineProbe(4, 3)
    probe.update(torch.randn(8, 4), torch.randint(3, (8,)))
    torch.save(probe.state_dict(), tmp_path / "probe.pt")
    other = OnlineProbe(4, 3)
    other.load_state_dict(torch.load(tmp_path / "probe.pt", weights_only=True))
    assert torch.equal(other.linear.weight, probe.linear.weight)


def test_images_without_a_label_are_ignored():
    features, labels = blobs(64, 6, 3, 1.0)
    labels[::2] = NO_LABEL
    found = OnlineProbe(6, 3).update(features, labels)
    assert found["probe_loss"].item() == pytest.approx(1.0986, abs=1e-3)  # ln 3 over the labeled half
    first_class = 100 * (labels[1::2] == 0).float().mean().item()  # zero scores predict class 0
    assert found["probe_train_accuracy"].item() == pytest.approx(first_class)
    probe = OnlineProbe(6, 3)
    found = probe.update(features, torch.full((64,), NO_LABEL))
    assert [value.item() for value in found.values()] == [0.0, 0.0]
    assert not probe.linear.weight.any()  # as it started


def test_class_ids_of_any_size():
    features, labels = blobs(64, 6, 3, 1.0)
    ids = torch.tensor([4, 90, 2_000_000_000])
    plain, sparse = OnlineProbe(6, 3), OnlineProbe(6, ids)
    for _ in range(5):
        assert plain.update(features, labels) == sparse.update(features, ids[labels])
    assert torch.equal(sparse.predict(features), ids[plain.predict(features)])
    images = CachedImages(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([90, NO_LABEL, 4]), None, "three")
    model = SSLModel.from_timm("test_resnet", method_args={"projector_dim": 16, "predictor_hidden": 8})
    assert OnlineProbe.for_model(model, images, torch.device("cpu")).classes.tolist() == [4, 90]


def test_only_labeled_images_are_neighbors_and_queries():
    """Every other label is missing: the accuracy is that of the labeled half."""
    features, labels = blobs(200, 6, 3, 1.0)
    half = labels.clone()
    half[::2] = NO_LABEL
    bank, queries = (
        CachedImages(torch.zeros(100, 3, 1, 1, dtype=torch.uint8), part, None, "x") for part in half.split(100)
    )

    def extract(dataset, indices=None, kept=None):
        part = slice(0, 100) if dataset is bank else slice(100, 200)
        chosen = torch.arange(100) if indices is None else torch.tensor(indices)
        if kept is not None:
            kept += chosen.tolist()
        return features[part][chosen], half[part][chosen]

    found = evaluate_features(
        extract, queries, bank, SSLTrainingArguments(knn_k=5, use_cpu=True), Accelerator(cpu=True)
    ).metrics
    expected = knn_accuracy(features[1:100:2], labels[1:100:2], features[101::2], labels[101::2], k=5)
    assert found["knn_accuracy"] == expected and 40 < expected < 100
    assert found["rankme"] == pytest.approx(rankme(features[100:]))


def test_half_precision_is_computed_in_float32():
    features, labels = blobs(64, 6, 3, 1.0)
    probes = OnlineProbe(6, 3), OnlineProbe(6, 3)
    plain = probes[0].update(features.bfloat16().float(), labels)["probe_loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        cast = probes[1].update(features.bfloat16(), labels)["probe_loss"]
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)
    assert torch.equal(probes[0].linear.weight, probes[1].linear.weight)


def test_predictions_change_nothing():
    features, labels = blobs(64, 6, 3, 1.0)
    probe = OnlineProbe(6, 3)
    probe.update(features, labels)
    before = copy.deepcopy(probe.state_dict())
    assert probe.predict(features).shape == (64,)
    after = probe.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "_extra_state")


def on_two_processes():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    features, labels = blobs(128, 6, 3, 1.0)
    together, alone = OnlineProbe(6, 3), OnlineProbe(6, 3)
    results = [
        together.update(x[rank::2], y[rank::2]) for x, y in zip(features.split(32), labels.split(32), strict=True)
    ]
    torch.distributed.destroy_process_group()
    expected = [alone.update(x, y) for x, y in zip(features.split(32), labels.split(32), strict=True)]
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.linear.weight, alone.linear.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.norm.running_var, alone.norm.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_agree_with_one():
    launch(__file__)


if __name__ == "__main__":
    on_two_processes()
