"""Class labels as class indices, with one value for "no label"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

NO_LABEL = -1  # the label of an image that has none, in samples, batches and the `labels` of a data set


def label_tensor(labels: Sequence[int] | torch.Tensor) -> torch.Tensor | None:
    """Class indices as int64 N, every negative one as `NO_LABEL`; None if no image has a label."""
    encoded = torch.as_tensor(labels, dtype=torch.int64).clamp(min=NO_LABEL)
    return None if (encoded == NO_LABEL).all() else encoded


@dataclass(frozen=True)
class Encoded:
    """Class indices of a split, int64 N, and the class names if they are known; None without usable labels.

    problem: why there are none although there are values, in words that follow "label_column x".
    """

    labels: torch.Tensor | None = None
    classes: list[str] | None = None
    problem: str | None = None


def encode_labels(values: Sequence[Any], names: list[str] | None, column: str) -> Encoded:
    """Class indices of the labels of a split.

    Args:
        values: integers, also as floats, booleans or strings; see `is_missing` for an image without a label.
        names: the class names if they are known, from the column's type or from the training split.
        column: the column's name, for messages.

    Raises ValueError for a string that is not in `names`.
    """
    plain = [None if is_missing(value) else _plain(value) for value in values]
    present = [value for value in plain if value is not None]
    if not present:
        return Encoded()
    if all(isinstance(value, str) for value in present):
        names = names or sorted(set(present))
        index = {name: position for position, name in enumerate(names)}
        unknown = sorted(set(present) - set(index))
        if unknown:
            shown = ", ".join(names[:10] + ["…"] * (len(names) > 10))
            raise ValueError(f"label_column {column} contains {unknown[0]!r}; the classes are {shown}")
        plain = [value if value is None else index[value] for value in plain]
    elif problem := next(filter(None, map(_problem, present)), None):
        return Encoded(problem=problem)
    encoded = [NO_LABEL if value is None else int(value) for value in plain]
    return Encoded(torch.tensor(encoded, dtype=torch.int64), names)


def class_index(value: Any) -> int | None:
    """The class index of one label, `NO_LABEL` without a label, None for text and other values.

    Raises ValueError for a number between two classes, such as 0.2.
    """
    value = _plain(value)
    if is_missing(value):
        return NO_LABEL
    if not isinstance(value, (int, float)):
        return None
    if problem := _problem(value):
        raise ValueError(
            f"the label column {problem}; use whole numbers or class names, or pass the images without labels"
        )
    return int(value)


def is_missing(value: Any) -> bool:
    """Whether a value says that there is no label: None, NaN, an empty text or a negative number."""
    value = _plain(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (int, float)) and not value >= 0)


def _plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _problem(value: Any) -> str | None:
    """Why a value is no class index."""
    if isinstance(value, (int, float)):
        is_index = value == int(value) < 2**63 if value != float("inf") else False
        return None if is_index else f"contains {value!r}, which is not a class index"
    if isinstance(value, str):
        return f"contains numbers and text ({value!r})"
    return f"contains values of type {type(value).__name__}, not a single class per image"
