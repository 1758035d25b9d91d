"""Splits of a dataset as decoded images with their labels; what has no label, or cannot be used, is logged."""

from collections.abc import Sequence
from typing import Any

import datasets
import torch

from hf_essl.common import evenly_spaced
from hf_essl.config import DataArguments
from hf_essl.config.fields import default_of
from hf_essl.data.columns import encoded_images
from hf_essl.data.dataset import DecodedImages, Rows, Transformed
from hf_essl.data.decode import image_path
from hf_essl.data.inventory import count_notice, notice
from hf_essl.data.labels import NO_LABEL, Encoded, encode_labels, is_missing
from hf_essl.data.sources import Splits


def read_splits(
    args: DataArguments, splits: Splits, name: str, train_split: str, eval_split: str | None
) -> tuple[DecodedImages, DecodedImages | None]:
    """The training images, and the evaluation images: of a split, or held out."""
    train = _source(splits.rows(train_split), args, name)
    _drop_single_class(train)
    held_out = None if eval_split is None else _evaluation_split(args, splits, name, eval_split, train)
    if held_out is None and args.eval_holdout > 0:
        chosen = evenly_spaced(len(train), max(1, round(args.eval_holdout * len(train))))
        rest = sorted(set(range(len(train))) - set(chosen))
        held_out, train = train.select(chosen), train.select(rest)
    if args.max_train_samples is not None:
        train = train.select(range(len(train))[: args.max_train_samples])
    if held_out is not None:
        held_out = held_out.select(evenly_spaced(len(held_out), args.max_eval_samples))
    evaluation = None if held_out is None else DecodedImages(held_out, args.image_size)
    return DecodedImages(train, args.image_size), evaluation


def read_all(args: DataArguments, splits: Splits, name: str, chosen: Sequence[str]) -> dict[str, DecodedImages]:
    """Every image of the chosen splits; text labels of all of them together are one list of classes."""
    rows = {split: splits.rows(split) for split in chosen}
    texts = [_texts(some, args.label_column) for some in rows.values() if args.label_column in some.features]
    lists = [names for names in texts if names]
    same = all(names == lists[0] for names in lists)
    classes = None if not lists else lists[0] if same else sorted(set().union(*lists))
    return {
        split: DecodedImages(_source(some, args, name, classes, f"{name}, split {split}"), args.image_size)
        for split, some in rows.items()
    }


def from_dataset(source: datasets.Dataset, args: DataArguments) -> DecodedImages:
    """A dataset of the Python API. A transform makes the images; the labels are those of the label column."""
    name, rows = source.info.dataset_name or "dataset", source.with_format(None)
    if source.format["type"] != "custom":
        return DecodedImages(_source(rows, args, name), args.image_size)
    labels = _labels(rows, args, name)
    return DecodedImages(Transformed(source, args.image_column, labels, name, args.white_level), args.image_size)


def encode(values: Sequence[Any], names: list[str] | None, column: str, name: str) -> Encoded:
    """The labels of these values; logs why there are none."""
    found = encode_labels(values, names, column)
    problem = found.problem or (None if found.labels is not None else "has no label for any image")
    if problem is not None and len(values):
        notice(name, f"labels are not used: label_column {column} {problem}")
    return found


def _source(
    rows: datasets.Dataset, args: DataArguments, name: str, classes: list[str] | None = None, shown: str | None = None
) -> Rows:
    rows = encoded_images(rows, args.image_column, name)
    found = _labels(rows, args, shown or name, classes)
    return Rows(rows, args.image_column, found.labels, found.classes or classes, name, args.white_level)


def _labels(rows: datasets.Dataset, args: DataArguments, name: str, classes: list[str] | None = None) -> Encoded:
    column = args.label_column
    if column not in rows.features:
        if column != default_of(DataArguments, "label_column"):
            notice(name, f"labels are not used: there is no label_column {column}, only {', '.join(rows.features)}")
        return Encoded()
    values, names = list(rows.select_columns([column])[:][column]), getattr(rows.features[column], "names", None)
    if names and classes and names != classes:  # another split, whose indices count its own classes
        values, names = [None if value is None or value < 0 else names[value] for value in values], classes
    elif classes and not names and all(is_missing(value) or str(value) in classes for value in values):
        values = [None if is_missing(value) else str(value) for value in values]  # numbers that are names elsewhere
    found = encode(values, names or classes, column, name)
    if found.labels is not None:
        missing = (found.labels == NO_LABEL).nonzero().flatten().tolist()
        count_notice(name, _named(rows, args, missing), "image", "without a label, not used for accuracies")
    return found


def _texts(rows: datasets.Dataset, column: str) -> list[str]:
    """The class names of a column: of its type, or its values; none if they are numbers."""
    names = getattr(rows.features[column], "names", None)
    if names:
        return list(names)
    values = [value for value in rows.select_columns([column])[:][column] if not is_missing(value)]
    return sorted(set(values)) if all(isinstance(value, str) for value in values) else []


def _named(rows: datasets.Dataset, args: DataArguments, indices: list[int]) -> list[Any]:
    """The same number of items, the first of them the path of its image or its position."""
    first = [image_path(rows[at][args.image_column]) or f"image {at}" for at in indices[:1]]
    return [*first, *indices[1:]]


def _drop_single_class(train: Rows) -> None:
    if train.labels is None or len(train.labels[train.labels != NO_LABEL].unique()) > 1:
        return
    only = int(train.labels.max())
    shown = only if train.classes is None else train.classes[only]
    notice(
        train.name,
        f"labels are not used: all training images are of one class, {shown} (if that is a folder of classes or "
        f"splits, give its path)",
    )
    train.labels = train.classes = None


def _evaluation_split(args: DataArguments, splits: Splits, name: str, split: str, train: Rows) -> Rows | None:
    """The images of a split; None if the split was not named and has no labels to evaluate with."""
    images = _source(splits.rows(split), args, name, train.classes, f"{name}, split {split}")
    if images.labels is not None and train.labels is not None:
        unknown = (images.labels != NO_LABEL) & ~torch.isin(images.labels, train.labels)
        if unknown.sum() == (images.labels != NO_LABEL).sum():
            notice(name, f"labels of the split {split} are not used: no training image is of its classes")
            images.labels = None
        else:
            new = _named(images.rows, args, unknown.nonzero().flatten().tolist())
            count_notice(name, new, "image", f"of the split {split} without a training image of the class")
    if images.labels is None and args.eval_split is None:
        notice(
            name,
            f"{len(images)} images of the split {split} are not used because they have no labels; to evaluate without "
            f"labels set eval_split: {split}, or hold out training images with eval_holdout: 0.1",
        )
        return None
    return images
