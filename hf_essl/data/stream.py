"""Images of a `datasets` stream: decoded as they arrive, never stored."""

import copy
import hashlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset

from hf_essl.data.columns import cell_reader
from hf_essl.data.dataset import ImageDataset
from hf_essl.data.decode import MAX_IN_A_ROW, Canvas, Unreadable, no_readable_image, read_image
from hf_essl.data.labels import NO_LABEL

SHUFFLE_BUFFER = 1_000


class StreamedImages(ImageDataset, IterableDataset):
    """An endless stream of decoded images, without labels.

    It passes over the stream again and again, and shuffles each pass from `seed` (shards, then a buffer of 1,000
    images). Processes whose shares differ by an image therefore stay in step, and the run ends by `max_steps`.
    DataLoader workers share the shards. Unreadable images are skipped; the sample before them lists them.

    Args:
        stream: a `datasets.IterableDataset` from `encoded_images`.
        white_level: see `DataArguments`.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        image_column: str,
        image_size: int,
        name: str,
        seed: int = 0,
        white_level: float | None = None,
    ):
        self.stream, self.column, self.image_size, self.name, self.seed = stream, image_column, image_size, name, seed
        self.read_cell = cell_reader(stream.features, image_column, white_level)
        self.rank, self.world_size = 0, 1

    def for_process(self, rank: int, world_size: int, seed: int | None = None) -> "StreamedImages":
        """The share of one of several processes, in the order of `seed`; the loader must not shard it again."""
        share = copy.copy(self)
        share.rank, share.world_size = rank, world_size
        share.seed = self.seed if seed is None else seed
        return share

    def shuffled(self, epoch: int) -> datasets.IterableDataset:
        """The rows of one pass, not decoded, in the order of all processes together."""
        return self.stream.shuffle(seed=self.seed + epoch, buffer_size=SHUFFLE_BUFFER)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises ValueError if 1,000 images in a row, or all of a pass, are unreadable."""
        for epoch in count():
            if not (yield from self.one_pass(epoch)):  # a worker without a shard
                return

    def one_pass(self, epoch: int) -> Generator[dict[str, Any], None, bool]:
        """The samples of one pass that belong to this process and worker; returns whether there were any."""
        rows = self.shuffled(epoch).select_columns([self.column])
        if self.world_size > 1:
            rows = split_dataset_by_node(rows, self.rank, self.world_size)
        pending: Canvas | None = None  # waits for the next image, to list the unreadable ones between them
        unreadable: list[Unreadable] = []
        for row in rows:
            image = self.read_cell(row[self.column])
            result = read_image(partial(_unlabeled, image), self.image_size, None, "")
            if isinstance(result, Unreadable):
                unreadable.append(result if result.name else replace(result, name=self._digest(image)))
                if len(unreadable) >= MAX_IN_A_ROW:
                    raise no_readable_image(self.name, unreadable)
                continue
            if pending is not None:
                yield _sample(pending, unreadable)
                unreadable = []
            pending = result[0]
        if pending is not None:
            yield _sample(pending, unreadable)
        elif unreadable:
            raise no_readable_image(self.name, unreadable)
        return pending is not None

    def _digest(self, image: Any) -> str:
        """A name for an image without a path; it is the same in every pass."""
        content = image.get("bytes") if isinstance(image, dict) else image
        content = content if isinstance(content, bytes) else str(type(image)).encode()
        return f"{self.name}[sha1 {hashlib.sha1(content).hexdigest()[:12]}]"


def _sample(canvas: Canvas, unreadable: list[Unreadable]) -> dict[str, Any]:
    return {"image": canvas.pixels, "aspect": canvas.aspect, "label": NO_LABEL, "unreadable": unreadable}


def _unlabeled(image: Any) -> tuple[Any, int]:
    return image, NO_LABEL
