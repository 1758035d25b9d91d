"""Images of a `datasets` stream: decoded as they come, never stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset

from hf_essl.data.dataset import ImageDataset
from hf_essl.data.unreadable import Unreadable, read_image, require_readable

SHUFFLE_BUFFER = 1_000


class StreamedImages(ImageDataset, IterableDataset):
    """An endless stream of decoded images, without labels.

    Pass follows pass, each shuffled anew from `seed` (shards, then a buffer of 1,000 images), so that processes whose
    shares differ by an image stay in step; the run ends by `max_steps`. DataLoader workers share the shards out.
    Unreadable images are skipped and reported in a sample beside them.

    Args:
        stream: a `datasets.IterableDataset` whose image column yields {"bytes", "path"}.
        rank, world_size: this process and the number of processes; each takes its own share.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        image_column: str,
        image_size: int,
        name: str,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.stream, self.column, self.image_size, self.name = stream, image_column, image_size, name
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def for_process(self, rank: int, world_size: int) -> StreamedImages:
        """The share of one of several processes; the loader must then not be sharded a second time."""
        return StreamedImages(self.stream, self.column, self.image_size, self.name, self.seed, rank, world_size)

    def shuffled(self, epoch: int) -> datasets.IterableDataset:
        """The rows of one pass in the order of all processes together, not decoded."""
        return self.stream.shuffle(seed=self.seed + epoch, buffer_size=SHUFFLE_BUFFER)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises ValueError when 1,000 images in a row, or all of a pass, are unreadable."""
        for epoch in count():
            empty = True
            for sample in self.one_pass(epoch):
                empty = False
                yield sample
            if empty:  # a worker without a shard
                return

    def one_pass(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The samples of one pass over the stream, this process's and worker's share of them."""
        rows = self.shuffled(epoch).select_columns([self.column])
        if self.world_size > 1:
            rows = split_dataset_by_node(rows, self.rank, self.world_size)
        held: torch.Tensor | None = None  # one image waits, so that the last sample can report what follows it
        unreadable: list[Unreadable] = []
        for row in rows:
            image = row[self.column]
            result = read_image(partial(_unlabelled, image), self.image_size, None, "")
            if isinstance(result, Unreadable):
                unreadable.append(result if result.name else replace(result, name=self._digest(image)))
                require_readable(unreadable)
                continue
            if held is not None:
                yield {"image": held, "unreadable": unreadable}
                unreadable = []
            held = result[0]
        if held is not None:
            yield {"image": held, "unreadable": unreadable}
        elif unreadable:
            raise ValueError(f"no image of {self.name} is readable: {unreadable[0].name}: {unreadable[0].reason}")

    def _digest(self, image: dict[str, Any] | None) -> str:
        """A name that is the same in every pass, for an image without a path."""
        content = (image or {}).get("bytes") or b""
        return f"{self.name}[sha1 {hashlib.sha1(content).hexdigest()[:12]}]"


def _unlabelled(image: Any) -> tuple[Any, None]:
    return image, None
