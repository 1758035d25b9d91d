import pytest
import torch

from hf_essl.config import DataArguments
from hf_essl.data import CachedImages, as_images, count_training_images, load_images
from hf_essl.data.builtin import DATASETS, BuiltInDataset
from hf_essl.recipe import describe_fields


def load(**options):
    return load_images(DataArguments(**{"dataset": "ramps", "image_size": 16, **options}))


def values(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


def test_a_dataset_registered_at_run_time(monkeypatch):
    """One loader and one line in the table are enough for recipes, Python, cost, help and messages."""

    def ramps(split, size, device):
        count = {"train": 20, "test": 10}[split]
        pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()
        return CachedImages(pixels.to(device), torch.arange(count) % 2, ["even", "odd"], "ramps")

    ramps_dataset = BuiltInDataset("20 gray ramps", 20, "free", splits=("train", "test"), load=ramps)
    monkeypatch.setitem(DATASETS, "ramps", ramps_dataset)
    images = load(max_train_samples=5, max_eval_samples=5)
    assert values(images.train) == [0, 1, 2, 3, 4] and values(images.eval) == [0, 2, 4, 6, 8]
    assert images.bank is images.train and images.train.image_size == 16
    assert values(as_images("ramps", DataArguments(train_split="test"))) == list(range(10))
    assert count_training_images(DataArguments(dataset="ramps")) == 20
    assert count_training_images(DataArguments(dataset="ramps", max_train_samples=7)) == 7
    assert "ramps: 20 gray ramps" in describe_fields()
    with pytest.raises(ValueError, match="train_split is all; the splits of ramps are train, test"):
        load(train_split="all")
    with pytest.raises(ValueError, match="or photo-patches or ramps"):
        load(dataset="./none")
