"""Labels of any kind to class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def encode_labels(
    values: Sequence[Any], names: list[str] | None, column: str
) -> tuple[torch.Tensor | None, list[str] | None]:
    """Class indices of the labels of a split.

    Args:
        values: integers, or strings.
        names: class names, where they are known: of the feature, or of the training split for an evaluation split.
        column: the column's name, for messages.

    Returns: (int64 N, class names or None); (None, None) where no image has a label (None or negative).

    Raises:
        ValueError: for labels of another type, for a split labelled in part, and for a string outside `names`.
    """
    values = [value.item() if hasattr(value, "item") else value for value in values]
    missing = sum(value is None or (isinstance(value, int) and value < 0) for value in values)
    if missing == len(values):
        return None, None
    if missing:
        raise ValueError(f"label_column {column} lacks {missing} of {len(values)} labels; label all images or none")
    if all(isinstance(value, str) for value in values):
        names = names or sorted(set(values))
        index = {name: position for position, name in enumerate(names)}
        unknown = sorted(set(values) - set(index))
        if unknown:
            raise ValueError(f"label_column {column} holds {unknown[0]!r}; the classes are {_few(names)}")
        values = [index[value] for value in values]
    if not all(isinstance(value, int) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise ValueError(f"label_column {column} holds {kinds}; labels are class indices (int) or class names (str)")
    return torch.tensor(values, dtype=torch.int64), names


def _few(names: list[str], count: int = 10) -> str:
    return ", ".join(names[:count] + ["…"] * (len(names) > count))
