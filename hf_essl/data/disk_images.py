"""Images of one size in a file: read at random, never held."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_essl.data.dataset import ImageDataset


class DiskImages(ImageDataset):
    """Decoded images in a file, of which the process holds the batch it reads and no more.

    Read by position out of the system's page cache, which all processes share and which gives way where memory is
    short. Not mapped: where the kernel maps large folios (Linux 6.18), one batch of 128 small images at random brings
    500 MB into the process's RSS and an epoch the whole file; mapping and unmapping also took longer than reading.

    Args:
        path: a file of uint8 images, 3 x S x S each, one after the other.
        slots: int64 N, the positions in the file of the dataset's images.
        labels: int64 N, or None.
    """

    def __init__(
        self,
        path: Path,
        image_size: int,
        slots: np.ndarray,
        labels: torch.Tensor | None,
        classes: list[str] | None,
        name: str,
    ) -> None:
        self.path, self.image_size, self.slots = path, image_size, slots
        self.labels, self.classes, self.name = labels, classes, name

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.__getitems__([index])
        sample = {"image": batch["image"][0], "unreadable": []}
        return sample if self.labels is None else sample | {"label": int(batch["label"][0])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A ready batch; torch's DataLoader calls this, and `collate` passes the batch through."""
        slots = self.slots[np.asarray(indices, dtype=np.int64)].tolist()
        images = np.empty((len(slots), 3, self.image_size, self.image_size), dtype=np.uint8)
        length, descriptor = 3 * self.image_size**2, self._file.fileno()
        if hasattr(os, "posix_fadvise"):  # the disk reads the whole batch at once, not one image after the other
            for slot in slots:
                os.posix_fadvise(descriptor, slot * length, length, os.POSIX_FADV_WILLNEED)
        for image, slot in zip(images, slots, strict=True):
            if os.preadv(descriptor, [image.data], slot * length) != length:
                raise OSError(f"the disk cache {self.path} ends before image {slot}; the next run builds it anew")
        batch = {"image": torch.from_numpy(images), "unreadable": []}
        if self.labels is None:
            return batch
        return batch | {"label": self.labels[torch.as_tensor(indices, dtype=torch.int64)]}

    @cached_property
    def _file(self) -> FileIO:
        return FileIO(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is spawned opens the file anew; one that is forked shares it, whose position nobody uses."""
        return {key: value for key, value in self.__dict__.items() if key != "_file"}
