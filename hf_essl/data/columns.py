"""Columns of images as datasets have them: encoded images, paths, URLs, base64 or arrays, in tables and in streams."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import datasets
import numpy as np
from torch.utils.data import IterableDataset

from hf_essl.data.decode import Scaled

TEXT = {"string", "large_string", "binary", "large_binary"}


def encoded_images(rows: Any, image_column: str, name: str) -> Any:
    """A `datasets` set or stream whose image column returns what `decode` accepts, so that only `decode` decodes.

    Raises ValueError for a column that is missing or contains no images.
    """
    features = rows.features
    if features is None:  # a stream of Python objects, or of files without declared columns
        first: dict[str, Any] = next(iter(rows), {})
        features = dict.fromkeys(first)
    if image_column not in features:
        raise ValueError(f"image_column is {image_column}; the columns of {name} are {', '.join(features)}")
    kind = features[image_column]
    if isinstance(kind, datasets.Image):
        return rows.cast_column(image_column, datasets.Image(decode=False))
    if kind is None or _is_row(kind) or _is_array(kind) or (isinstance(kind, datasets.Value) and kind.dtype in TEXT):
        return rows
    raise ValueError(
        f"image_column {image_column} of {name} contains {kind}; it must be images, bytes, paths or arrays of uint8"
    )


def cell_reader(features: Any, image_column: str, white_level: float | None) -> Callable[[Any], Any]:
    """A function from a cell of the image column to what `decode` accepts."""
    is_array = features is not None and _is_array(features[image_column])
    return partial(_read_cell, is_array, white_level)  # workers get a copy


def _read_cell(is_array: bool, white_level: float | None, cell: Any) -> Any:
    image = np.asarray(cell, dtype=np.uint8) if is_array and cell is not None else cell
    return image if white_level is None else Scaled(image, white_level)


def as_stream(items: IterableDataset, image_key: str) -> datasets.IterableDataset:
    """A stream of `datasets` over a torch stream of images, bare, in (image, label) pairs or in dicts."""
    return datasets.IterableDataset.from_generator(partial(_images_of, items, image_key))


def _images_of(items: IterableDataset, image_key: str) -> Iterator[dict[str, Any]]:
    for item in items:
        if isinstance(item, (tuple, list)):
            item = item[0]
        yield {image_key: item[image_key] if isinstance(item, dict) and image_key in item else item}


def _is_row(kind: Any) -> bool:
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


def _is_array(kind: Any) -> bool:
    """Whether a column contains uint8 numbers in one (an encoded file), two or three dimensions."""
    if isinstance(kind, (datasets.Array2D, datasets.Array3D)):
        return kind.dtype == "uint8"
    inner = kind
    while isinstance(inner, (datasets.List, datasets.LargeList)):
        inner = inner.feature
    return inner is not kind and isinstance(inner, datasets.Value) and inner.dtype == "uint8"
