import urllib.request

import numpy as np
import pytest
import torch

from hf_essl.config import DataArguments
from hf_essl.data import count_training_images, load_images, photo_patches
from hf_essl.data.photo_patches import PHOTOS, boxes


@pytest.fixture(scope="module")
def images():
    return load_images(DataArguments(image_size=32))


def test_default_dataset(images):
    assert count_training_images(DataArguments()) == 4096
    assert len(images.train) == 16 * 256 and len(images.eval) == 16 * 64
    assert images.bank is images.train
    assert images.train.labels.bincount().tolist() == [256] * 16
    assert images.eval.labels.bincount().tolist() == [64] * 16
    assert images.train.classes == images.eval.classes and len(set(images.train.classes)) == 16
    assert images.train.images.shape == (4096, 3, 32, 32) and images.train.images.dtype == torch.uint8


def test_same_at_every_call(images):
    photo_patches._photo.cache_clear()
    again = load_images(DataArguments(image_size=32))
    assert torch.equal(again.train.images, images.train.images)
    assert torch.equal(again.train.labels, images.train.labels)
    assert torch.equal(again.eval.images, images.eval.images)


@pytest.mark.parametrize("photo", PHOTOS)
def test_no_pixel_is_in_both_splits(photo):
    width, height = photo_patches._photo(photo).size
    shown = {split: np.zeros((height, width), dtype=bool) for split in ("train", "validation")}
    for split, mask in shown.items():
        for left, top, right, bottom in boxes(photo, split):
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert right - left == bottom - top and 72 <= right - left <= 144
            mask[top:bottom, left:right] = True
    assert not (shown["train"] & shown["validation"]).any()
    assert shown["train"].mean() > 0.15 and shown["validation"].mean() > 0.15


def test_windows_have_content():
    flat = []
    for photo in PHOTOS:
        gray = np.asarray(photo_patches._photo(photo).convert("L"), dtype=float)
        for split in ("train", "validation"):
            flat += [gray[top:bottom, left:right].std() < 8 for left, top, right, bottom in boxes(photo, split)]
    assert np.mean(flat) < 0.02


def test_few_images_show_every_class():
    images = load_images(DataArguments(image_size=8, max_train_samples=32, max_eval_samples=48))
    assert images.train.labels.bincount().tolist() == [2] * 16
    assert images.eval.labels.bincount().tolist() == [3] * 16


def test_classes_differ_in_color_and_contrast(images):
    def describe(dataset):
        pixels = dataset.images.float()
        edges = (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().mean((2, 3))
        return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3)), edges], dim=1)

    nearest = torch.cdist(describe(images.eval), describe(images.train)).argmin(1)
    assert (images.train.labels[nearest] == images.eval.labels).float().mean() > 0.5  # chance is 0.06


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    photo_patches._photo.cache_clear()
    load_images(DataArguments(image_size=8))


def test_missing_photo(monkeypatch, tmp_path):
    photo_patches._photo.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / "i.py")}))
    with pytest.raises(FileNotFoundError, match=r"needs astronaut\.png of scikit-image.*reinstall scikit-image"):
        load_images(DataArguments(image_size=8))


def test_other_settings():
    assert len(load_images(DataArguments(image_size=8, train_split="validation", eval_split="train")).train) == 1024
    with pytest.raises(ValueError, match="eval_split is test; the splits of photo-patches are train, validation"):
        load_images(DataArguments(eval_split="test"))
