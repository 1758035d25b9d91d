"""Class labels as class indices, with one value for "no label"."""

from collections.abc import Sequence
from typing import Any

import torch

NO_LABEL = -1  # the label of an image that has none, in samples, batches and the `labels` of a data set


def label_tensor(labels: Sequence[int] | torch.Tensor) -> torch.Tensor | None:
    """Class indices as int64 N, every negative one as `NO_LABEL`; None if no image has a label."""
    encoded = torch.as_tensor(labels, dtype=torch.int64).clamp(min=NO_LABEL)
    return None if (encoded == NO_LABEL).all() else encoded


def encode_labels(
    values: Sequence[Any], names: list[str] | None, column: str
) -> tuple[torch.Tensor | None, list[str] | None]:
    """Class indices of the labels of a split.

    Args:
        values: integers or strings; None or a negative integer for an image without a label.
        names: the class names if they are known, from the column's type or from the training split.
        column: the column's name, for messages.

    Returns (int64 N, class names or None), or (None, None) if no image has a label.
    Raises ValueError for labels of another type, for a partly labeled split, and for a string that is not in `names`.
    """
    values = [value.item() if hasattr(value, "item") else value for value in values]
    missing = sum(value is None or (isinstance(value, int) and value < 0) for value in values)
    if missing == len(values):
        return None, None
    if missing:
        raise ValueError(
            f"label_column {column} has no label for {missing} of {len(values)} images; label all images or none"
        )
    if all(isinstance(value, str) for value in values):
        names = names or sorted(set(values))
        index = {name: position for position, name in enumerate(names)}
        unknown = sorted(set(values) - set(index))
        if unknown:
            shown = ", ".join(names[:10] + ["…"] * (len(names) > 10))
            raise ValueError(f"label_column {column} contains {unknown[0]!r}; the classes are {shown}")
        values = [index[value] for value in values]
    if not all(isinstance(value, int) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise ValueError(
            f"label_column {column} contains {kinds}; labels are class indices (int) or class names (str)"
        )
    return torch.tensor(values, dtype=torch.int64), names
