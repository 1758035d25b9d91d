"""Decoded images, kept as one uint8 tensor on the host or on the accelerator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import psutil
import torch
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm

from hf_essl.data.dataset import DecodedImages, ImageDataset
from hf_essl.data.unreadable import Unreadable, UnreadableLog, read_image

CHUNK = 1_024  # images decoded between two copies to the cache
USABLE = 0.8  # share of the free memory that a cache may take


class CachedImages(ImageDataset):
    """Decoded images in memory.

    Args:
        images: uint8 N x 3 x S x S, on any device.
        labels: int64 N on the host, or None.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor | None, classes: list[str] | None, name: str
    ) -> None:
        self.images, self.labels, self.classes, self.name = images, labels, classes, name
        self.image_size = images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {"image": self.images[index], "unreadable": []}
        return sample if self.labels is None else sample | {"label": int(self.labels[index])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A ready batch in one gather; torch's DataLoader calls this, and `collate` passes the batch through.

        Raises ValueError in a worker process when the images are on an accelerator, which forked workers cannot use.
        """
        if self.images.device.type != "cpu" and get_worker_info() is not None:
            raise ValueError("cache is device with dataloader workers; set dataloader_num_workers: 0 or cache: memory")
        index = torch.as_tensor(indices, dtype=torch.int64)
        batch = {"image": self.images.index_select(0, index.to(self.images.device)), "unreadable": []}
        return batch if self.labels is None else batch | {"label": self.labels[index]}

    def take(self, indices: Sequence[int]) -> CachedImages:
        """The images at `indices`, copied; the same object for all of them in order."""
        if list(indices) == list(range(len(self))):
            return self
        index = torch.as_tensor(indices, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[index]
        return CachedImages(self.images[index.to(self.images.device)], labels, self.classes, self.name)


def cache_images(dataset: DecodedImages, device: torch.device | str, max_unreadable: float) -> CachedImages:
    """Decodes a whole dataset up front, by threads, and keeps it on `device`; unreadable images are left out.

    Raises:
        ValueError: before decoding, when the images need more than 80 % of the free memory; while decoding, when more
            than `max_unreadable` of them are unreadable.
    """
    source, log = dataset.source, UnreadableLog(len(dataset), max_unreadable)
    reads = (partial(source.read, index) for index in range(len(source)))
    images, labels = decode_all(reads, len(source), dataset.image_size, device, source.name, log)
    encoded = torch.tensor(labels, dtype=torch.int64) if labels and labels[0] is not None else None
    cached = CachedImages(images, encoded, dataset.classes, dataset.name)
    cached.left_out = len(log.found)
    return cached


def decode_all(
    reads: Iterable[Callable[[], tuple[Any, Any]]],
    count: int,
    size: int,
    device: torch.device | str,
    name: str,
    log: UnreadableLog,
) -> tuple[torch.Tensor, list[Any]]:
    """Runs at most `count` reads of (image, label) and decodes the images, in chunks, in a pool of threads.

    Returns: the readable images, uint8 N x 3 x size x size on `device` in the order of the reads, and their N labels.
    """
    require_memory(count, size, device)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8, device=device)
    labels: list[Any] = []
    with progress_bar(count, name) as bar:
        for results in decode_chunks(islice(reads, count), size, name):
            readable = [result for result in results if not isinstance(result, Unreadable)]
            log.update([result for result in results if isinstance(result, Unreadable)], seen=len(readable))
            if readable:
                images[len(labels) : len(labels) + len(readable)] = torch.stack([image for image, _ in readable])
            labels += [label for _, label in readable]
            bar.update(len(results))
    if not labels:
        raise ValueError(f"no image of {name} is readable")
    return images[: len(labels)], labels


def decode_chunks(
    reads: Iterable[Callable[[], tuple[Any, Any]]], size: int, name: str, chunk: int | None = None, start: int = 0
) -> Iterator[list[tuple[torch.Tensor, Any] | Unreadable]]:
    """Runs reads of (image, label) in a pool of threads: what `read_image` gives, in order, `chunk` (1,024) at a time.

    Args:
        start: index of the first read, for the names of unreadable images.
    """
    numbered = enumerate(reads, start)
    with ThreadPoolExecutor(_usable_cores()) as pool:
        while jobs := list(islice(numbered, chunk or CHUNK)):
            yield list(pool.map(lambda job: read_image(job[1], size, job[0], f"{name}[{job[0]}]"), jobs))


def require_memory(count: int, size: int, device: torch.device | str) -> None:
    """Raises ValueError when `count` images of `size` pixels need more than 80 % of the free memory of `device`."""
    needed, free = count * 3 * size * size, free_memory(torch.device(device))
    if needed > USABLE * free:
        raise ValueError(
            f"{count} images at image_size {size} need {needed / 1e9:.1f} GB, above {USABLE:.0%} of the "
            f"{free / 1e9:.1f} GB free on {device}; set cache: disk or none, or a smaller image_size"
        )


def free_memory(device: torch.device) -> int:
    """Free bytes on an accelerator, or of the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(count: int, name: str, done: int = 0) -> tqdm:
    """A bar of `count` images on a terminal, of which `done` are there already."""
    return tqdm(total=count, initial=done, desc=f"decoding {name}", unit="image", disable=None)
