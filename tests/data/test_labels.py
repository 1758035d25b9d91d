"""Labels of every make, in tables and in torch datasets: usable ones become classes, others are named and not used."""

import logging
import math

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from hf_essl.config import DataArguments
from hf_essl.data import NO_LABEL, as_images, load_images
from hf_essl.data.labels import encode_labels
from tests.data.images import png

ARGS = DataArguments(image_size=16)

USABLE = {
    "strings": (["bee", "ant", "bee"], [1, 0, 1]),
    "strings, partly missing": (["bee", "", None, "ant", " "], [1, -1, -1, 0, -1]),
    "integers": ([2, 0, 2], [2, 0, 2]),
    "integers, partly missing": ([2, -1, None, 0, -7], [2, -1, -1, 0, -1]),
    "whole floats, as pandas writes integers with gaps": ([1.0, math.nan, 3.0], [1, -1, 3]),
    "booleans": ([True, False, True], [1, 0, 1]),
    "booleans, partly missing": ([True, None, False], [1, -1, 0]),
    "sparse": ([2_000_000_000, 5, 2**62], [2_000_000_000, 5, 2**62]),
}
UNUSABLE = {
    "multi-label": ([[0, 1], [1], []], "values of type list, not a single class per image"),
    "names of several classes": ([["a", "b"], ["b"], ["a"]], "values of type list"),
    "structures": ([{"x": 1}, {"x": 2}, {"x": 3}], "values of type dict"),
    "bytes": ([b"a", b"b", b"a"], "values of type bytes"),
    "nothing": ([None, None, None], "has no label for any image"),
    "only -1, as in a hidden test split": ([-1, -1, -1], "has no label for any image"),
}


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.WARNING, "hf_essl.data")
    return lambda text: [one for one in caplog.messages if text in one]


def table(labels, path):
    datasets.Dataset.from_dict({"image": [png(i) for i in range(len(labels))], "label": labels}).to_parquet(path)
    return load_images(DataArguments(dataset=str(path), image_size=16))


class Pairs(Dataset):
    """(image, label) pairs; further attributes, such as `targets`, by keyword."""

    def __init__(self, labels, **attributes):
        self.pairs = labels
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return Image.new("L", (20, 20), index), self.pairs[index]


@pytest.mark.parametrize("kind", USABLE)
def test_usable_labels_of_a_table_and_of_a_torch_dataset(tmp_path, lines, kind):
    labels, expected = USABLE[kind]
    images = table(labels, tmp_path / "a.parquet")
    assert images.train.labels.tolist() == expected and images.bank is images.train
    missing = expected.count(NO_LABEL)
    assert len(lines(f"a: {missing} image{'s' * (missing != 1)} without a label, not used for accuracies")) == (
        missing > 0
    )
    pairs = as_images(Pairs(labels), ARGS)
    assert pairs.labels.tolist() == [pairs[index]["label"] for index in range(len(labels))] == expected


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_table_whose_labels_cannot_be_used_still_trains(tmp_path, lines, kind):
    labels, reason = UNUSABLE[kind]
    images = table(labels, tmp_path / "a.parquet")
    assert len(images.train) == 3 and images.train.labels is None and images.bank is None
    assert images.train[1]["label"] == NO_LABEL
    assert len(lines("a: labels are not used: label_column label ")) == len(lines(reason)) == 1


@pytest.mark.parametrize("kind", sorted(set(UNUSABLE) - {"structures"}))
def test_a_torch_dataset_whose_labels_cannot_be_used_still_trains(kind):
    images = as_images(Pairs(UNUSABLE[kind][0]), ARGS)
    assert images[1]["label"] == NO_LABEL and images.labels is None


def test_targets_of_every_kind():
    assert as_images(Pairs([3, 4], targets=torch.tensor([3, 4])), ARGS).labels.tolist() == [3, 4]
    assert as_images(Pairs(["b", "a"], targets=np.array(["b", "a"])), ARGS).labels.tolist() == [1, 0]
    assert as_images(Pairs(["b", "a"], classes=["a", "c", "b"]), ARGS)[0]["label"] == 2
    assert as_images(Pairs([0, 1], targets=torch.eye(2)), ARGS).labels is None  # multi-hot


@pytest.mark.parametrize("labels", [[0.2, 1.9], np.array([0.25, 1], np.float32), torch.tensor([1.0, 0.5])])
def test_fractions_in_a_torch_dataset_are_refused_with_the_value(labels):
    fraction = next(float(label) for label in labels if float(label) % 1)
    images = as_images(Pairs(labels), ARGS)
    with pytest.raises(ValueError, match=f"contains {fraction}.*, which is not a class index"):
        assert images.labels
    with pytest.raises(ValueError, match=f"contains {fraction}"):
        [images[index] for index in range(len(labels))]


def test_fractions_in_a_table_are_named(tmp_path, lines):
    assert table([1.0, 0.25, 3.0], tmp_path / "a.parquet").train.labels is None
    assert lines("labels are not used: label_column label contains 0.25, which is not a class index")


def test_a_label_column_that_does_not_exist(tmp_path, lines):
    datasets.Dataset.from_dict({"image": [png(0)], "text": ["x"]}).to_parquet(tmp_path / "a.parquet")
    for column, logged in (("label", 0), ("species", 1)):
        args = DataArguments(dataset=str(tmp_path / "a.parquet"), image_size=16, label_column=column)
        assert load_images(args).train.labels is None
        assert len(lines("a: labels are not used: there is no label_column species, only image, text")) == logged


MISSING = st.sampled_from([None, math.nan, -1, -3, ""])


@given(st.lists(st.integers(0, 2**63 - 1) | MISSING))
def test_integers_are_kept_and_everything_else_is_missing(values):
    kept = [value if isinstance(value, int) and value >= 0 else NO_LABEL for value in values]
    found = encode_labels(values, None, "label")
    assert found.problem is None
    assert (found.labels is None and set(kept) <= {NO_LABEL}) or found.labels.tolist() == kept


@given(st.lists(st.text(min_size=1).filter(str.strip) | st.sampled_from([None, ""]), min_size=1))
def test_names_can_be_read_back(values):
    found = encode_labels(values, None, "label")
    if found.labels is None:
        assert not any(values)
        return
    assert found.classes == sorted(found.classes)
    assert [found.classes[label] if label >= 0 else None for label in found.labels] == [one or None for one in values]
