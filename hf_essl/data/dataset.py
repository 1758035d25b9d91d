"""Map-style datasets of decoded images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from hf_essl.compat import dataset_fingerprint
from hf_essl.data.unreadable import Unreadable, read_image, require_readable


class Source(Protocol):
    """Images that are not yet decoded, by index, with their labels."""

    name: str
    classes: list[str] | None
    fingerprint: str | None
    """Text that changes with the images; None where the source cannot tell."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Any, int | None]:
        """(anything that `decode` takes, class index or None)."""

    def read_labels(self) -> torch.Tensor | None:
        """int64 N, or None without labels."""


class ImageDataset(Dataset):
    """What every dataset of this package is: samples {"image": uint8 3 x S x S, "label": int, "unreadable": list}.

    `label` is absent without labels. `labels` is int64 N or None, `classes` the class names or None.
    """

    name: str
    image_size: int
    classes: list[str] | None = None
    labels: torch.Tensor | None = None
    left_out: int = 0
    """Unreadable images that a cache does without."""


def image_count(dataset: Any) -> int | None:
    """Images of a dataset; None for a stream, and where there is no dataset."""
    return len(dataset) if hasattr(dataset, "__len__") else None


class DecodedImages(ImageDataset):
    """Decodes an image each time it is asked for.

    An unreadable image is replaced by the next readable one, so that the batch size stays; the sample then carries
    the replacement's label and reports the unreadable ones. `labels` are those of the images as stored.
    """

    def __init__(self, source: Source, image_size: int) -> None:
        self.source, self.image_size = source, image_size
        self.name, self.classes = source.name, source.classes

    @cached_property
    def labels(self) -> torch.Tensor | None:  # type: ignore[override]
        return self.source.read_labels()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises ValueError when the dataset, or the 1,000 images from `index` on, cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        unreadable: list[Unreadable] = []
        for step in range(len(self)):
            at = (index + step) % len(self)
            result = read_image(partial(self.source.read, at), self.image_size, at, f"{self.name}[{at}]")
            if not isinstance(result, Unreadable):
                image, label = result
                sample = {"image": image, "unreadable": unreadable}
                return sample if label is None else sample | {"label": label}
            unreadable.append(result)
            require_readable(unreadable)
        raise ValueError(f"no image of {self.name} is readable: {unreadable[0].name}: {unreadable[0].reason}")


class Rows:
    """Images of a `datasets.Dataset`, whose image column yields {"bytes", "path"}, and labels read up front."""

    def __init__(self, rows, image_column: str, labels: torch.Tensor | None, classes, name: str) -> None:
        self.rows, self.column = rows.select_columns([image_column]), image_column
        self.labels, self.classes, self.name = labels, classes, name
        self.fingerprint: str | None = dataset_fingerprint(
            self.rows
        )  # of `datasets`: files, their times, what was selected

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[Any, int | None]:
        return self.rows[index][self.column], None if self.labels is None else int(self.labels[index])

    def read_labels(self) -> torch.Tensor | None:
        return self.labels


class Items:
    """Images of a torch dataset: PIL images or uint8 tensors, alone, in (image, label) pairs or in dicts."""

    def __init__(self, items, image_key: str, label_key: str) -> None:
        if not hasattr(items, "__len__"):
            raise ValueError(f"{type(items).__name__} has no length; give a map-style dataset of images")
        self.items, self.image_key, self.label_key = items, image_key, label_key
        self.name, self.classes = type(items).__name__, getattr(items, "classes", None)
        self.fingerprint: str | None = getattr(items, "fingerprint", None)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> tuple[Any, int | None]:
        item = self.items[index]
        image, label = item, None
        if isinstance(item, dict):
            if self.image_key not in item:
                raise ValueError(f"image_column is {self.image_key}; the items of {self.name} hold {', '.join(item)}")
            image, label = item[self.image_key], item.get(self.label_key)
        elif isinstance(item, (tuple, list)):
            image, label = item[0], item[1] if len(item) > 1 else None
        return image, None if label is None else int(label)

    def read_labels(self) -> torch.Tensor | None:
        """From the dataset's `targets` or `labels` where it has them, else by reading every item once."""
        labels: Sequence[Any] | None = getattr(self.items, "targets", getattr(self.items, "labels", None))
        if labels is None or len(labels) != len(self):
            labels = []
            for index in range(len(self)):
                label = self.read(index)[1]
                if label is None:
                    return None
                labels.append(label)
        return torch.as_tensor(labels, dtype=torch.int64)


def collate(samples: Any) -> dict[str, Any]:
    """Samples to a batch; a batch that the dataset gathered itself passes through.

    Returns: {"image": uint8 B x 3 x S x S, "label": int64 B (only where labels exist), "unreadable": list}.
    """
    if isinstance(samples, dict):
        return samples
    batch: dict[str, Any] = {"image": torch.stack([sample["image"] for sample in samples])}
    if "label" in samples[0]:
        batch["label"] = torch.tensor([sample["label"] for sample in samples], dtype=torch.int64)
    batch["unreadable"] = [one for sample in samples for one in sample["unreadable"]]
    return batch


def sample_images(dataset: Any, count: int = 3) -> torch.Tensor:
    """A few images, evenly spaced over a dataset (or the first of a stream): uint8 count x 3 x S x S."""
    if hasattr(dataset, "__len__"):
        picked = [dataset[int(i)] for i in torch.linspace(0, len(dataset) - 1, count)]
    else:
        picked = [sample for sample, _ in zip(dataset, range(count), strict=False)]
    return torch.stack([sample["image"].cpu() for sample in picked])
