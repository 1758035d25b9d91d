"""`cache: disk`: decoded images in one file on disk, for datasets that do not fit in memory.

    <cache_dir, or the cache of `datasets`>/hf_essl/<name>-<size>px-<key>/
        images.u8    uint8 N x 3 x S x S, one slot per image of the source; zeros for an unreadable one
        aspects.npy  float32 N, width / height of the images; 1 for an unreadable one
        hashes.npy   uint64 N, a hash per slot
        cache.json   the source, what the canvas is, the image size, the unreadable images, and hashes of both .npy

The key is a hash of the source's fingerprint, the number and size of the images and the version of the decoder, so
other images have another folder. A cache is built in `<folder>.building`, which is renamed when the cache is complete.
For every 256 images on the disk a journal has one line; an interrupted build continues after its last line.

Opening checks sizes, cache.json and the .npy files; each image is checked when a process first reads it, and one with
another hash is decoded again. A cache without hashes comes from an earlier version, and its images are not checked.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from functools import cached_property, partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from hf_essl.common import write_text
from hf_essl.data.cache import decode_chunks
from hf_essl.data.dataset import DecodedImages, StoredImages
from hf_essl.data.decode import CANVAS, VERSION, Unreadable, UnreadableLog, read_image

logger = logging.getLogger(__name__)

FORMAT = 1
CHUNK = 256  # images per line of the journal
NAMED = 3  # damaged images that a process names
IMAGES, ASPECTS, HASHES, FACTS, JOURNAL = "images.u8", "aspects.npy", "hashes.npy", "cache.json", "journal.jsonl"


class DiskImages(StoredImages):
    """Decoded images in a file; the process keeps only the batch that it reads.

    The file is read by position, through the page cache that all processes share. A memory map is worse: if the kernel
    maps large folios (Linux 6.18), one random batch of 128 small images adds 500 MB to the process's RSS and an epoch
    the whole file, and it is slower.

    Args:
        path: a file of uint8 images, 3 x S x S each, one after the other.
        slots: int64 N, the positions of the dataset's images in the file.
        aspects: float32 N, width / height of the whole images.
        labels: int64 N, or None.
        hashes: uint64, one per slot of the file; None: images are not checked.
        repair: decodes the image of a slot again, uint8 3 x S x S; it raises OSError if that fails.
    """

    def __init__(
        self,
        path: Path,
        image_size: int,
        slots: np.ndarray,
        aspects: torch.Tensor,
        labels: torch.Tensor | None,
        classes: list[str] | None,
        name: str,
        hashes: np.ndarray | None = None,
        repair: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.path, self.image_size, self.slots, self.aspects = path, image_size, slots, aspects
        self.labels, self.classes, self.name = labels, classes, name
        self.hashes, self.repair = hashes, repair
        self._unchecked = None if hashes is None else np.ones(len(hashes), dtype=bool)
        self._repaired = 0

    def __len__(self) -> int:
        return len(self.slots)

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at int64 B indices, uint8 B x 3 x S x S.

        Raises OSError if the file ends too early, or a damaged image cannot be decoded again.
        """
        slots = self.slots[indices.numpy()].tolist()
        images = np.empty((len(slots), 3, self.image_size, self.image_size), dtype=np.uint8)
        length, descriptor = 3 * self.image_size**2, self._file.fileno()
        if hasattr(os, "posix_fadvise"):  # the disk reads the whole batch at once, not one image after the other
            for slot in slots:
                os.posix_fadvise(descriptor, slot * length, length, os.POSIX_FADV_WILLNEED)
        for image, slot in zip(images, slots, strict=True):
            if os.preadv(descriptor, [image.data], slot * length) != length:
                raise OSError(f"the disk cache {self.path} ends before image {slot}; the next run rebuilds it")
            if self._unchecked is not None and self._unchecked[slot]:
                self._check(image, slot)
        return torch.from_numpy(images)

    def _check(self, image: np.ndarray, slot: int) -> None:
        """Compares an image at its first use with its hash; if it differs, decodes it again, in place."""
        assert self.hashes is not None and self._unchecked is not None
        if _hash(image) != self.hashes[slot]:
            where = f"image {slot} of the disk cache {self.path.parent}"
            if self.repair is None:
                raise OSError(f"{where} is damaged; delete that folder, and it is built again")
            image[:] = self.repair(slot)
            with suppress(OSError), self.path.open("r+b") as file:  # a cache that others own is repaired in memory
                os.pwrite(file.fileno(), image.data, slot * image.nbytes)
            if _hash(image) != self.hashes[slot]:
                raise OSError(f"{where} is damaged, and its source has changed; delete that folder")
            self._repaired += 1
            if self._repaired <= NAMED:
                more = " (further ones are repaired without a line)" if self._repaired == NAMED else ""
                _report(f"{where} was damaged; it is decoded again{more}")
        self._unchecked[slot] = False

    @cached_property
    def _file(self) -> FileIO:
        return FileIO(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker opens the file again; a forked one shares it, which is safe for reads by position."""
        return {key: value for key, value in super().__getstate__().items() if key != "_file"}


def disk_cache(dataset: DecodedImages, root: Path, max_unreadable: float) -> DiskImages:
    """Opens the cache of a dataset on disk, and builds it first if it is missing or damaged.

    One process builds while the others wait; if it dies, another continues. Unreadable images are left out. Each
    opening logs and counts them, as decoding did.

    Args:
        root: folder of the caches.
        max_unreadable: largest share of unreadable images.

    Raises ValueError before decoding, for a source without a fingerprint and for too little space on the disk; while
    decoding, if more than `max_unreadable` of the images are unreadable.
    """
    folder = _folder(dataset, root)
    log = UnreadableLog(len(dataset), max_unreadable)
    facts = _read_facts(folder, dataset)
    if facts is None:
        with _lock(folder):
            facts = _read_facts(folder, dataset)
            if facts is None:
                _report_outdated(dataset, root)
                facts = _build(dataset, folder, log)
    unreadable = [Unreadable(**one) for one in facts["unreadable"]]
    slots = np.setdiff1d(np.arange(len(dataset)), [one.index for one in unreadable])
    log.update(unreadable, len(slots))
    labels = None if dataset.labels is None else dataset.labels[slots]
    aspects = torch.from_numpy(np.load(folder / ASPECTS)[slots])
    hashes = np.load(folder / HASHES) if HASHES in facts else None
    named = (labels, dataset.classes, dataset.name)
    images = DiskImages(
        folder / IMAGES, dataset.image_size, slots, aspects, *named, hashes, partial(_decode_again, dataset)
    )
    images.left_out = len(unreadable)
    images.remember(dataset.source, slots.tolist())
    return images


def _folder(dataset: DecodedImages, root: Path, version: int = VERSION) -> Path:
    """The folder of a complete cache. A change of the key would make every user decode again."""
    if not dataset.source.fingerprint:
        raise ValueError(
            f"cache is disk, but {dataset.name} has no fingerprint; give the dataset an attribute `fingerprint`, a "
            f"text that changes with its images, or set cache: memory"
        )
    identity = [FORMAT, version, CHUNK, dataset.source.fingerprint, len(dataset), dataset.image_size]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", dataset.name)[:40]
    return root / "hf_essl" / f"{name}-{dataset.image_size}px-{key}"


def _report_outdated(dataset: DecodedImages, root: Path) -> None:
    """Says that the caches of earlier versions are not used; deleting them is left to the user."""
    for version in range(1, VERSION):
        old = _folder(dataset, root, version)
        if (old / IMAGES).is_file():
            size = (old / IMAGES).stat().st_size / 1e9
            _report(
                f"the disk cache {old} contains center squares of an earlier version; it is rebuilt with whole images "
                f"in a new folder, and you can delete the old one ({size:.1f} GB)"
            )


def _bytes(dataset: DecodedImages, count: int) -> int:
    return count * 3 * dataset.image_size**2


def _read_facts(folder: Path, dataset: DecodedImages) -> dict[str, Any] | None:
    """The facts of a complete cache: its folder's name identifies the source. None if it is missing or damaged."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        found = [Unreadable(**one) for one in facts["unreadable"]]
        described = facts["count"] == len(dataset) and facts["image_size"] == dataset.image_size
        inside = all(type(one.index) is int and 0 <= one.index < len(dataset) for one in found)
        complete = (folder / IMAGES).stat().st_size == _bytes(dataset, len(dataset))
        arrays = np.load(folder / ASPECTS).shape == (len(dataset),)
        for name in (ASPECTS, HASHES):  # earlier versions have no hashes
            arrays = arrays and (name not in facts or _checksum((folder / name).read_bytes()) == facts[name])
        return facts if described and inside and complete and arrays else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError):
        return None


def _decode_again(dataset: DecodedImages, slot: int) -> np.ndarray:
    """The canvas of one image, uint8 3 x S x S. Raises OSError if it cannot be read any more."""
    found = read_image(partial(dataset.source.read, slot), dataset.image_size, slot, f"{dataset.name}[{slot}]")
    if isinstance(found, Unreadable):
        raise OSError(f"image {slot} of the disk cache is damaged, and cannot be decoded again: {found}")
    return found[0].pixels.numpy()


def _lock(folder: Path) -> AbstractContextManager:
    """Lets one process build at a time; the system releases the lock of a process that dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        _report(f"waiting for another process, which builds the disk cache {folder}")
        return lock.acquire()


def _build(dataset: DecodedImages, folder: Path, log: UnreadableLog) -> dict[str, Any]:
    if folder.exists():
        logger.warning("the disk cache %s is damaged and will be rebuilt", folder)
        shutil.rmtree(folder)
    scratch = folder.with_name(f"{folder.name}.building")
    scratch.mkdir(exist_ok=True)
    journal = _read_journal(scratch, dataset)
    done, count, size = min(len(journal) * CHUNK, len(dataset)), len(dataset), dataset.image_size
    needed, free = _bytes(dataset, count - done), shutil.disk_usage(scratch).free
    if needed > free:
        raise ValueError(
            f"{count} images at image_size {size} need {needed / 1e9:.1f} GB, above the {free / 1e9:.1f} GB free in "
            f"{folder.parent}; set cache_dir to a larger disk, or a smaller image_size"
        )
    already = f", {done:,} of them already cached" if done else ""
    total = f"{_bytes(dataset, count) / 1e9:.1f} GB"
    _report(f"caching {dataset.name} on disk: {count:,} images at {size} px{already}, {total} in {folder}")
    log.update([Unreadable(**one) for line in journal for one in line["unreadable"]], seen=0)
    with (scratch / JOURNAL).open("a", encoding="utf-8") as file:
        for line in _decode(dataset, scratch, done, log):
            journal.append(line)
            file.write(f"{json.dumps(line)}\n")
            _sync(file)
    np.save(scratch / ASPECTS, np.array([aspect for line in journal for aspect in line["aspects"]], dtype=np.float32))
    np.save(scratch / HASHES, np.array([value for line in journal for value in line["hashes"]], dtype=np.uint64))
    source = {"name": dataset.name, "fingerprint": dataset.source.fingerprint, "count": count, "image_size": size}
    source |= {"canvas": CANVAS} | {name: _checksum((scratch / name).read_bytes()) for name in (ASPECTS, HASHES)}
    facts = {**source, "unreadable": [one for line in journal for one in line["unreadable"]]}
    write_text(scratch / FACTS, json.dumps(facts))
    (scratch / JOURNAL).unlink()
    os.rename(scratch, folder)
    return facts


def _decode(dataset: DecodedImages, scratch: Path, done: int, log: UnreadableLog) -> Iterator[dict[str, Any]]:
    """Decodes from image `done` on; yields a line of the journal once its images are safely on the disk."""
    name, count = dataset.name, len(dataset)
    reads = (partial(dataset.source.read, index) for index in range(done, count))
    (scratch / IMAGES).touch()
    with (scratch / IMAGES).open("r+b") as file:
        file.seek(_bytes(dataset, done))
        for chunk in decode_chunks(reads, count, dataset.image_size, name, log, CHUNK, done):
            block = np.zeros((len(chunk), _bytes(dataset, 1)), dtype=np.uint8)
            aspects = [1.0] * len(chunk)
            for row, result in enumerate(chunk):
                if not isinstance(result, Unreadable):
                    pixels, aspects[row] = result[0]
                    block[row] = pixels.numpy().reshape(-1)
            file.write(block.data)
            _sync(file)
            done += len(chunk)
            if not sys.stderr.isatty() and done * 10 // count > (done - len(chunk)) * 10 // count:
                _report(f"caching {name} on disk: {done:,} of {count:,} images")
            unreadable = [asdict(result) for result in chunk if isinstance(result, Unreadable)]
            yield {"hashes": [_hash(row) for row in block], "aspects": aspects, "unreadable": unreadable}


def _read_journal(scratch: Path, dataset: DecodedImages) -> list[dict[str, Any]]:
    """The journal of an interrupted build without an incomplete last line; empty if its last images are not there."""
    path, images = scratch / JOURNAL, scratch / IMAGES
    lines: list[dict[str, Any]] = []
    if path.exists() and images.exists():
        with suppress(ValueError, TypeError):
            for text in path.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if {"hashes", "aspects", "unreadable"} - set(line):
                    break
                lines.append(line)
    if lines:
        with images.open("rb") as file:
            file.seek(_bytes(dataset, (len(lines) - 1) * CHUNK))
            block = [file.read(_bytes(dataset, 1)) for _ in lines[-1]["hashes"]]
            if [_hash(image) for image in block] != lines[-1]["hashes"]:
                lines = []
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
    return lines


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _checksum(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _hash(image: Any) -> int:
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
