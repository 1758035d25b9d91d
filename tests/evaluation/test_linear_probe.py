import importlib
import os

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_essl.common import evenly_spaced
from hf_essl.config import DataArguments
from hf_essl.data import load_images
from hf_essl.evaluation import extract_features, linear_probe
from hf_essl.evaluation.linear_probe import probe_epochs, train_linear


def blobs(n, d, classes, spread, seed=0):
    """Train and test halves of Gaussian blobs, n each."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, d, generator=generator)
    labels = torch.randint(classes, (2 * n,), generator=generator)
    features = means[labels] + spread * torch.randn(2 * n, d, generator=generator)
    return features[:n], labels[:n], features[n:], labels[n:]


def logistic_regression(train, train_labels, test, test_labels):
    scaler = StandardScaler().fit(train.numpy())
    model = LogisticRegression(max_iter=500).fit(scaler.transform(train.numpy()), train_labels.numpy())
    return 100 * model.score(scaler.transform(test.numpy()), test_labels.numpy())


@pytest.mark.parametrize(
    ("n", "d", "classes", "spread"), [(5000, 16, 4, 2.0), (3000, 64, 10, 2.0), (6000, 32, 20, 1.5), (300, 32, 3, 2.0)]
)
def test_within_a_point_of_logistic_regression(n, d, classes, spread):
    data = blobs(n, d, classes, spread)
    expected = logistic_regression(*data)
    assert 60 < expected < 99.9
    assert linear_probe(*data) == pytest.approx(expected, abs=1.0)


def test_class_ids_of_any_size():
    train, labels, test, truth = blobs(300, 16, 3, 2.0)
    ids = torch.tensor([7, 30, 2_000_000_000])
    assert linear_probe(train, ids[labels], test, ids[truth], epochs=90) == linear_probe(
        train, labels, test, truth, epochs=90
    )


def features_of(data, name, resolution, train_images=None):
    """Features of real images by an untrained backbone, and their labels: training, then evaluation images."""
    images = load_images(data)
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0)
    half = (0.5, 0.5, 0.5)
    options = {"resolution": resolution, "mean": half, "std": half, "crop_pct": 1.0}
    train = extract_features(backbone, images.train, indices=evenly_spaced(len(images.train), train_images), **options)
    return *train, *extract_features(backbone, images.eval, **options)


@pytest.mark.slow
def test_photo_patches_within_a_point_of_logistic_regression():
    data = features_of(DataArguments(image_size=96), "test_resnet", 96)
    assert len(data[0]) == 4096 and len(data[2]) == 1024
    expected = logistic_regression(*data)
    assert 70 < expected < 95
    assert linear_probe(*data) == pytest.approx(expected, abs=1.0)


@pytest.mark.slow
@pytest.mark.skipif("HF_ESSL_IMAGENETTE" not in os.environ, reason="HF_ESSL_IMAGENETTE names no folder of Imagenette")
def test_2000_imagenette_images_within_a_point_of_logistic_regression():
    args = DataArguments(dataset=os.environ["HF_ESSL_IMAGENETTE"], image_size=64)
    data = features_of(args, "test_resnet", 64, 2_000)
    assert len(data[0]) == 2_000 and len(data[2]) > 3_000
    expected = logistic_regression(*data)
    assert 20 < expected < 60  # chance is 10
    assert linear_probe(*data) == pytest.approx(expected, abs=1.0)


def test_correlated_features_of_unequal_scale():
    data = blobs(3000, 32, 8, 1.5)
    mix = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 32)
    mixed = (data[0] @ mix, data[1], data[2] @ mix, data[3])
    assert linear_probe(*mixed, epochs=200) == pytest.approx(logistic_regression(*mixed), abs=2.0)


def test_digits():
    features, labels = (torch.as_tensor(values) for values in load_digits(return_X_y=True))
    data = features[:1200], labels[:1200], features[1200:], labels[1200:]
    assert linear_probe(*data, batch_size=128) == pytest.approx(
        logistic_regression(*data), abs=2.0
    )  # 12 of 597 images


def test_known_answers():
    labels = torch.arange(400) % 4
    features = torch.eye(4)[labels] + 0.01
    assert linear_probe(features, labels, features, labels) == 100.0
    # a quarter of the test labels is another class than the features say
    flipped = torch.where(torch.arange(400) < 100, (labels + 1) % 4, labels)
    assert linear_probe(features, labels, features, flipped) == 75.0
    # no linear classifier solves xor: at best three of its four corners
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(100, 1)
    xor = (corners[:, 0] != corners[:, 1]).long()
    assert linear_probe(corners, xor, corners, xor) <= 75.0


def test_scale_offset_and_a_constant_dimension_change_nothing():
    train, train_labels, test, test_labels = blobs(1000, 16, 4, 1.5)
    plain = linear_probe(train, train_labels, test, test_labels)
    scaled = linear_probe(1000 * train + 50, train_labels, 1000 * test + 50, test_labels)
    assert scaled == pytest.approx(plain, abs=0.3)
    constant = torch.full((1000, 1), 3.0)
    drifted = torch.full((1000, 1), 3.1)  # constant in training, elsewhere in the test
    got = linear_probe(torch.cat([train, constant], 1), train_labels, torch.cat([test, drifted], 1), test_labels)
    assert got == pytest.approx(plain, abs=0.3)


def test_it_repeats_and_keeps_the_random_state():
    data = blobs(500, 16, 4, 2.5)
    state = torch.get_rng_state()
    with torch.no_grad():  # as an evaluation loop calls it
        first = linear_probe(*data, batch_size=64)
    torch.manual_seed(123)
    assert linear_probe(*data, batch_size=64) == first
    torch.set_rng_state(state)
    linear_probe(*data, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_of_small_datasets_make_3000_steps_and_imagenet_gets_90():
    assert probe_epochs(1_281_167) == 90
    assert probe_epochs(2_000) == 3_000 and probe_epochs(4_096) == 1_500 and probe_epochs(4_097) == 1_000
    assert probe_epochs(2_000, batch_size=100) == 150


def test_half_precision_on_chunks_agrees_with_float32(monkeypatch):
    data = blobs(1000, 16, 4, 1.5)
    plain = linear_probe(*data)
    halved = data[0].half(), data[1], data[2].half(), data[3]
    assert linear_probe(*halved) == pytest.approx(plain, abs=0.3)
    module = importlib.import_module("hf_essl.evaluation.linear_probe")  # the package names a function so
    monkeypatch.setattr(module, "CHUNK", 7)
    assert linear_probe(*data) == pytest.approx(plain, abs=0.3)


def test_the_weights_are_those_of_a_penalized_logistic_regression():
    train, labels, _, _ = blobs(400, 4, 3, 2.0)
    classifier = train_linear(train, labels, epochs=6000)
    scaled = StandardScaler().fit_transform(train.numpy())
    reference = LogisticRegression(C=1.0, max_iter=500).fit(scaled, labels.numpy())
    torch.testing.assert_close(
        classifier.linear.weight, torch.as_tensor(reference.coef_).float(), rtol=0.05, atol=0.02
    )


def test_features_do_not_change():
    data = blobs(200, 8, 3, 1.0)
    copies = [value.clone() for value in data]
    linear_probe(*data, epochs=3)
    assert all(torch.equal(value, copy) for value, copy in zip(data, copies, strict=True))


def test_refusals():
    train, train_labels, test, test_labels = blobs(50, 8, 3, 1.0)
    with pytest.raises(ValueError, match="epochs is 0; it should be greater than or equal to 1"):
        linear_probe(train, train_labels, test, test_labels, epochs=0)
    with pytest.raises(ValueError, match=r"train labels have shape \(49,\) for 50 features"):
        linear_probe(train, train_labels[1:], test, test_labels)
    with pytest.raises(ValueError, match="8 and 4 dimensions"):
        linear_probe(train, train_labels, test[:, :4], test_labels)
    with pytest.raises(ValueError, match="test features are not finite"):
        linear_probe(train, train_labels, test * torch.nan, test_labels)
    with pytest.raises(ValueError, match="train labels contain -1"):
        linear_probe(train, train_labels - 1, test, test_labels)
