"""Map-style datasets of decoded images, and batches of them."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_essl.common import evenly_spaced
from hf_essl.compat import dataset_fingerprint
from hf_essl.data.columns import cell_reader
from hf_essl.data.decode import MAX_IN_A_ROW, Scaled, Unreadable, image_path, no_readable_image, read_image
from hf_essl.data.inventory import notice
from hf_essl.data.labels import NO_LABEL, Encoded, class_index, encode_labels


class ImageDataset(Dataset):
    """The interface of all datasets of this package.

    A sample is {"image": the `Canvas` pixels, uint8 3 x S x S, "aspect": width / height of the whole image, "label":
    class index or NO_LABEL, "index": of the image, "unreadable": list of `Unreadable`}.
    `labels` is int64 N, or None if no image has a label; `classes` the class names if they are known.
    """

    name: str
    image_size: int
    classes: list[str] | None = None
    labels: Tensor | None = None
    left_out: int = 0  # unreadable images that a cache leaves out
    has_known_labels = True  # False if `labels` reads every image

    def path_of(self, index: int) -> str | None:
        """The path of the file of an image; None if there is none or it is not known."""
        return None

    def file_name(self, index: int) -> str | None:
        """The name of that file after its folder's, such as tench/001.png."""
        path = self.path_of(index)
        return "/".join(PurePath(path).parts[-2:]).lstrip("/") if path else None


class StoredImages(ImageDataset):
    """Decoded images that are read a batch at a time.

    `aspects` is float32 N on the host, width / height of the whole images.
    """

    aspects: Tensor
    origin: tuple["Rows", Sequence[int]] | None = None  # what was decoded, and each image's index in it

    def remember(self, source: "Rows | Items", indices: Sequence[int]) -> None:
        """Keeps the decoded rows for `file_name`; not other sources, which may hold all images in memory."""
        self.origin = (source, indices) if isinstance(source, Rows) else None

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes need no names."""
        return {**self.__dict__, "origin": None}

    def path_of(self, index: int) -> str | None:
        if self.origin is None:
            return None
        source, indices = self.origin
        return source.path_of(int(indices[index]))

    def gather(self, indices: Tensor) -> Tensor:
        """The images at int64 B indices, uint8 B x 3 x S x S."""
        raise TypeError(f"{type(self).__name__} must define gather(indices)")

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.__getitems__([range(len(self))[index]])  # type: ignore[arg-type]  # or IndexError
        label, aspect = int(batch["label"][0]), float(batch["aspect"][0])
        at = int(batch["index"][0])
        return {"image": batch["image"][0], "aspect": aspect, "label": label, "index": at, "unreadable": []}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A ready batch; torch's DataLoader calls this, and `collate` returns the batch unchanged."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        labels = torch.full_like(index, NO_LABEL) if self.labels is None else self.labels[index]
        found = {"image": self.gather(index), "aspect": self.aspects[index], "label": labels, "index": index}
        return {**found, "unreadable": []}


class DecodedImages(ImageDataset):
    """Decodes an image each time it is requested.

    The next readable image replaces an unreadable one, so that the batch size does not change. The sample then has
    label and index of the replacement and lists the unreadable images. `labels` are those of the images as stored.

    Args:
        source: the encoded images by index: `Rows`, `Items`, or an object with their attributes and methods.
        image_size: side S in pixels.
    """

    def __init__(self, source: "Rows | Items", image_size: int) -> None:
        self.source, self.image_size = source, image_size
        self.name, self.classes = source.name, source.classes
        self.has_known_labels = not isinstance(source, Items) or source.has_targets

    @cached_property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        return self.source.read_labels()

    def __len__(self) -> int:
        return len(self.source)

    def path_of(self, index: int) -> str | None:
        return self.source.path_of(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises ValueError if no image of the dataset, or none of the 1,000 images from `index` on, is readable."""
        index = range(len(self))[index]  # or IndexError
        unreadable: list[Unreadable] = []
        for step in range(min(len(self), MAX_IN_A_ROW)):
            at = (index + step) % len(self)
            result = read_image(partial(self.source.read, at), self.image_size, at, f"{self.name}[{at}]")
            if not isinstance(result, Unreadable):
                (pixels, aspect), label = result
                found = {"image": pixels, "aspect": aspect, "label": label, "index": at}
                return {**found, "unreadable": unreadable}
            unreadable.append(result)
        raise no_readable_image(self.name, unreadable)


class Rows:
    """Images of a `datasets.Dataset` whose image column returns {"bytes", "path"}, with labels read in advance.

    `fingerprint` is a text that changes with the images, or None if there is no such text.
    """

    def __init__(
        self, rows, image_column: str, labels: Tensor | None, classes, name: str, white_level: float | None = None
    ) -> None:
        self.rows, self.column = rows.select_columns([image_column]), image_column
        self.labels, self.classes, self.name, self.white_level = labels, classes, name, white_level
        self.read_cell = cell_reader(rows.features, image_column, white_level)
        self.fingerprint: str | None = _fingerprint(dataset_fingerprint(self.rows), white_level)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[Any, int]:
        """(anything that `decode` accepts, class index or NO_LABEL)."""
        image = self.read_cell(self.rows[index][self.column])
        return image, NO_LABEL if self.labels is None else int(self.labels[index])

    def path_of(self, index: int) -> str | None:
        """The path of the image's file; None if there is none."""
        return image_path(self.rows[index][self.column])

    def read_labels(self) -> Tensor | None:
        """int64 N, or None if no image has a label."""
        return self.labels

    def select(self, indices: Sequence[int]) -> "Rows":
        """The images at `indices`, with the same classes; the same object for all of them in order."""
        if list(indices) == list(range(len(self))):
            return self
        part = copy.copy(self)
        part.rows = self.rows.select(indices)
        part.labels = None if self.labels is None else self.labels[torch.as_tensor(indices, dtype=torch.int64)]
        part.fingerprint = _fingerprint(dataset_fingerprint(part.rows), self.white_level)
        return part


class Items:
    """Images of a torch dataset, bare, in (image, label) pairs or in dicts: anything that `decode` accepts."""

    def __init__(self, items, image_key: str, label_key: str, white_level: float | None = None) -> None:
        if not hasattr(items, "__len__"):
            raise ValueError(f"{type(items).__name__} has no length; pass a map-style dataset of images")
        self.items, self.keys, self.white_level = items, (image_key, label_key), white_level
        self.name, self.classes = type(items).__name__, getattr(items, "classes", None)
        self.fingerprint = _fingerprint(getattr(items, "fingerprint", None), white_level)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> tuple[Any, int]:
        """Raises ValueError for a label between two classes, such as 0.2."""
        image, *label = self._parts(index)
        known = class_index(label[0]) if label else NO_LABEL
        if known is None:  # text, which all labels together turn into classes
            known = NO_LABEL if self._encoded.labels is None else int(self._encoded.labels[index])
        return image if self.white_level is None else Scaled(image, self.white_level), known

    def path_of(self, index: int) -> str | None:
        """The path of the image's file; None if there is none."""
        return image_path(self._parts(index)[0])

    def read_labels(self) -> Tensor | None:
        """From the dataset's `targets` or `labels` if it has them, else by reading every item once.

        If the first item has no place for a label, no other item is read.
        """
        return self._encoded.labels

    @property
    def has_targets(self) -> bool:
        return len(self._targets()) == len(self)

    def _targets(self) -> Sequence[Any]:
        targets: Any = getattr(self.items, "targets", getattr(self.items, "labels", None))
        return targets if hasattr(targets, "__len__") else ()

    @cached_property
    def _encoded(self) -> Encoded:
        labels = self._targets()
        if not self.has_targets:
            if not len(self) or len(self._parts(0)) == 1:
                return Encoded()
            labels = [(*self._parts(index), None)[1] for index in range(len(self))]
        for label in labels:
            class_index(label)  # refuses fractions
        encoded = encode_labels(labels, self.classes, self.keys[1])
        if encoded.problem:
            notice(self.name, f"labels are not used: label_column {self.keys[1]} {encoded.problem}")
        return encoded

    def _parts(self, index: int) -> tuple[Any, ...]:
        """(image,) or (image, label)."""
        item = self.items[index]
        if isinstance(item, dict):
            if self.keys[0] not in item:
                raise ValueError(f"image_column is {self.keys[0]}; the items of {self.name} have {', '.join(item)}")
            return tuple(item[key] for key in self.keys if key in item)
        return tuple(item[:2]) if isinstance(item, (tuple, list)) else (item,)


class Transformed(Items):
    """Images that the transform of a `datasets.Dataset` makes; the labels are those of its rows."""

    def __init__(self, rows, image_key: str, encoded: Encoded, name: str, white_level: float | None = None) -> None:
        super().__init__(rows, image_key, "", white_level)
        self._encoded, self.classes, self.name = encoded, encoded.classes, name
        self.fingerprint = _fingerprint(dataset_fingerprint(rows), white_level)

    def read(self, index: int) -> tuple[Any, int]:
        image, _ = super().read(index)
        return image, NO_LABEL if self._encoded.labels is None else int(self._encoded.labels[index])


def _fingerprint(images: str | None, white_level: float | None) -> str | None:
    """The images' own fingerprint, different for each white level."""
    return images if white_level is None or images is None else f"{images} white {white_level:g}"


def image_count(dataset: Any) -> int | None:
    """The number of images of a dataset; None for a stream, and for None."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def sample_images(dataset: Any, count: int = 3) -> tuple[Tensor, Tensor]:
    """At most `count` images, evenly spaced over a dataset or the first of a stream.

    Returns their canvases, uint8 B x 3 x S x S, and aspect ratios, float32 B; both on the host.
    """
    if hasattr(dataset, "__len__"):
        samples = [dataset[index] for index in evenly_spaced(len(dataset), count)]
    else:
        samples = [sample for sample, _ in zip(dataset, range(count), strict=False)]
    aspects = torch.tensor([sample.get("aspect", 1.0) for sample in samples], dtype=torch.float32)
    return torch.stack([sample["image"].cpu() for sample in samples]), aspects


def collate(samples: Any) -> dict[str, Any]:
    """Samples to a batch; a batch that the dataset has gathered is returned unchanged.

    Returns {"image": uint8 B x 3 x S x S, "aspect": float32 B, "label": int64 B, "unreadable": list}, and "index",
    int64 B, unless they are of a stream. Samples without an aspect are square images.
    """
    if isinstance(samples, dict):
        return samples
    known = {"index": torch.tensor([sample["index"] for sample in samples])} if "index" in samples[0] else {}
    return known | {
        "image": torch.stack([sample["image"] for sample in samples]),
        "aspect": torch.tensor([sample.get("aspect", 1.0) for sample in samples], dtype=torch.float32),
        "label": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "unreadable": [one for sample in samples for one in sample["unreadable"]],
    }


class Feed:
    """Moves the images and labels of a loader's batches to the device.

    Aspect ratios stay on the host, where the parameters of views are sampled.

    On a GPU the copy of a pinned batch has its own stream: it does not wait for the previous step, and later work
    waits only for the copy.
    """

    collate = staticmethod(collate)

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its images and labels on the device."""
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            tensors = {key: batch[key].to(self.device, non_blocking=True) for key in ("image", "label")}
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for value in tensors.values():
                value.record_stream(current)  # otherwise its memory could be reused while a step still reads it
        return batch | tensors
