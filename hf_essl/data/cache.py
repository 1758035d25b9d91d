"""Decoded images, kept as one uint8 tensor on the host or on the accelerator."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm

from hf_essl.data.dataset import DecodedImages, StoredImages
from hf_essl.data.decode import Canvas, Unreadable, UnreadableLog, no_readable_image, read_image
from hf_essl.data.labels import label_tensor

CGROUP = Path("/sys/fs/cgroup")  # the limits of a container
CHUNK = 1_024  # images decoded between two copies to the cache
USABLE = 0.8  # share of the free memory that a cache may use
Reading = Callable[[], tuple[Any, Any]]  # returns (image, label)


class CachedImages(StoredImages):
    """Decoded images in memory.

    Args:
        images: uint8 N x 3 x S x S, on any device.
        labels: int64 N on the host, or None.
        aspects: float32 N on the host, width / height of the whole images; by default they are squares.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        classes: list[str] | None,
        name: str,
        aspects: torch.Tensor | None = None,
    ):
        self.images, self.labels, self.classes, self.name = images, labels, classes, name
        self.aspects = torch.ones(len(images)) if aspects is None else aspects
        self.image_size = images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at int64 B indices, uint8 B x 3 x S x S on the cache's device.

        Raises ValueError in a worker process if the images are on an accelerator, which forked workers cannot use.
        """
        if self.images.device.type != "cpu" and get_worker_info() is not None:
            raise ValueError("cache is device with dataloader workers; set dataloader_num_workers: 0 or cache: memory")
        return self.images.index_select(0, indices.to(self.images.device))

    def take(self, indices: Sequence[int]) -> "CachedImages":
        """A copy of the images at `indices`; the same object for all of them in order."""
        if list(indices) == list(range(len(self))):
            return self
        index = torch.as_tensor(indices, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[index]
        part = CachedImages(self.gather(index), labels, self.classes, self.name, self.aspects[index])
        part.origin = self.origin and (self.origin[0], [self.origin[1][at] for at in indices])
        return part


def cache_images(dataset: DecodedImages, device: torch.device | str, max_unreadable: float) -> CachedImages:
    """Decodes a whole dataset in a pool of threads and keeps it on `device`, without its unreadable images.

    Raises ValueError before decoding, if the images need more than 80 % of the free memory; while decoding, if more
    than `max_unreadable` of them are unreadable.
    """
    log = UnreadableLog(len(dataset), max_unreadable)
    reads = (partial(dataset.source.read, index) for index in range(len(dataset)))
    images, aspects, labels = decode_all(reads, len(dataset), dataset.image_size, device, dataset.name, log)
    cached = CachedImages(images, label_tensor(labels), dataset.classes, dataset.name, aspects)
    cached.left_out = len(log.found)
    unreadable = {one.index for one in log.found.values()}
    cached.remember(dataset.source, [index for index in range(len(dataset)) if index not in unreadable])
    return cached


def decode_all(
    reads: Iterable[Reading], count: int, size: int, device: torch.device | str, name: str, log: UnreadableLog
) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Runs at most `count` reads of (image, label) and decodes the images in a pool of threads.

    Returns the canvases of the readable images, uint8 N x 3 x size x size on `device` in the order of the reads, their
    aspect ratios, float32 N, and their N labels.
    Raises ValueError for too little free memory, for too many unreadable images, and if none is readable.
    """
    check_memory(count, size, device)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8, device=device)
    aspects: list[float] = []
    labels: list[Any] = []
    for results in decode_chunks(reads, count, size, name, log):
        readable = [result for result in results if not isinstance(result, Unreadable)]
        if readable:
            images[len(labels) : len(labels) + len(readable)] = torch.stack([canvas.pixels for canvas, _ in readable])
        aspects += [canvas.aspect for canvas, _ in readable]
        labels += [label for _, label in readable]
    if not labels:
        raise no_readable_image(name, list(log.found.values()))
    return images[: len(labels)], torch.tensor(aspects, dtype=torch.float32), labels


def decode_chunks(
    reads: Iterable[Reading], count: int, size: int, name: str, log: UnreadableLog, chunk: int = 0, start: int = 0
) -> Iterator[list[tuple[Canvas, Any] | Unreadable]]:
    """Runs the reads of the images `start` to `count` in threads and shows a progress bar.

    Yields what `read_image` returns, in order, `chunk` (by default 1,024) images at a time, after counting the
    unreadable ones in `log`.
    """
    numbered = zip(range(start, count), reads, strict=False)
    bar = tqdm(total=count, initial=start, desc=f"decoding {name}", unit="image", disable=None)
    with ThreadPoolExecutor(usable_cores()) as pool, bar:
        while jobs := list(islice(numbered, chunk or CHUNK)):
            results = list(pool.map(lambda job: read_image(job[1], size, job[0], f"{name}[{job[0]}]"), jobs))
            unreadable = [result for result in results if isinstance(result, Unreadable)]
            log.update(unreadable, len(results) - len(unreadable))
            bar.update(len(results))
            yield results


def check_memory(count: int, size: int, device: torch.device | str) -> None:
    """Raises ValueError if `count` images of `size` pixels need more than 80 % of the free memory of `device`.

    The processes of one machine share its memory.
    """
    device = torch.device(device)
    needed = count * 3 * size * size
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory() // here
    if needed > USABLE * free:
        each = " for each process" if here > 1 else ""
        raise ValueError(
            f"{count} images at image_size {size} need {needed / 1e9:.1f} GB, above {USABLE:.0%} of the "
            f"{free / 1e9:.1f} GB free on {device}{each}; set cache: disk or none, or a smaller image_size"
        )


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that this process may still use: those of the machine, and of its container if that has a limit."""
    free = psutil.virtual_memory().available
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),  # version 2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most, now = int((cgroup / limit).read_text()), int((cgroup / used).read_text())
            lines = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
        except (OSError, ValueError):  # no such version, or "max"
            continue
        free = min(free, max(most - now + int(lines.get(cached, 0)), 0))  # what files fill is given back
    return free


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
