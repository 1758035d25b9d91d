"""`cache: disk`: decoded images in one file on disk, for data sets that do not fit in memory.

    <cache_dir, or the cache of `datasets`>/hf_essl/<name>-<size>px-<key>/
        images.u8    uint8 N x 3 x S x S, a slot for each image of the source; that of an unreadable one is zero
        cache.json   the source, the size, the unreadable images, and a checksum for every 256 images

The key is a hash of the source's fingerprint, the number and the size of the images and the version of the decoder:
other images have another folder. A cache is built in `<folder>.building`, a chunk and a line of its journal at a time,
and gets its name when it is whole; what was interrupted goes on behind the last line of the journal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from hf_essl.common import write_text
from hf_essl.data.cache import decode_chunks, progress_bar
from hf_essl.data.dataset import DecodedImages
from hf_essl.data.decode import VERSION as DECODER
from hf_essl.data.disk_images import DiskImages
from hf_essl.data.unreadable import Unreadable, UnreadableLog

logger = logging.getLogger(__name__)

FORMAT = 1
CHUNK = 256  # images between two lines of the journal, and of one checksum
IMAGES, FACTS, JOURNAL = "images.u8", "cache.json", "journal.jsonl"


@dataclass(frozen=True)
class Plan:
    """What a cache holds, which names its folder."""

    name: str
    fingerprint: str
    count: int
    image_size: int

    @property
    def image_bytes(self) -> int:
        return 3 * self.image_size * self.image_size

    @property
    def total_bytes(self) -> int:
        return self.count * self.image_bytes

    @property
    def key(self) -> str:
        identity = [FORMAT, DECODER, CHUNK, self.fingerprint, self.count, self.image_size]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def folder(self, root: Path) -> Path:
        return root / "hf_essl" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', self.name)[:40]}-{self.image_size}px-{self.key}"


def disk_cache(dataset: DecodedImages, root: Path, max_unreadable: float) -> DiskImages:
    """The images of a dataset out of their cache on disk, which is built first where it is not there.

    One process builds and the others wait for it; one that dies is replaced. Unreadable images are left out, and named
    and counted at every opening, as when they were decoded.

    Args:
        root: folder of the caches.
        max_unreadable: largest share of unreadable images.

    Raises:
        ValueError: before decoding, for a source that cannot be told from another and where the disk is too small;
            while decoding, when more than `max_unreadable` of the images are unreadable, and when all are.
    """
    plan = _plan(dataset)
    folder = plan.folder(root)
    log = UnreadableLog(plan.count, max_unreadable)
    facts = _facts(folder, plan)
    if facts is None:
        with _one_builder(folder):
            facts = _facts(folder, plan) or _build(dataset, plan, folder, log)
    unreadable = [Unreadable(**one) for one in facts["unreadable"]]
    log.update(unreadable)
    readable = np.ones(plan.count, dtype=bool)
    readable[[one["index"] for one in facts["unreadable"]]] = False
    if not readable.any():
        raise ValueError(f"no image of {plan.name} is readable: {unreadable[0].name}: {unreadable[0].reason}")
    slots = readable.nonzero()[0]
    labels = None if dataset.labels is None else dataset.labels[slots]
    images = DiskImages(folder / IMAGES, plan.image_size, slots, labels, dataset.classes, dataset.name)
    images.left_out = len(unreadable)
    return images


def verify(folder: Path) -> None:
    """Reads a whole cache and compares it with its checksums. Raises ValueError for the first damage, with the fix."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    size = CHUNK * 3 * facts["image_size"] ** 2
    with (folder / IMAGES).open("rb") as file:
        for index, checksum in enumerate(facts["checksums"]):
            if _checksum(file.read(size)) != checksum:
                last = min((index + 1) * CHUNK, facts["count"]) - 1
                raise ValueError(
                    f"images {index * CHUNK} to {last} of the disk cache {folder} differ from their checksum; delete "
                    f"the folder, and the next run builds it anew"
                )


def _plan(dataset: DecodedImages) -> Plan:
    fingerprint = dataset.source.fingerprint
    if not fingerprint:
        raise ValueError(
            f"cache is disk, but a {dataset.name} does not say which images it holds; give it an attribute "
            f"`fingerprint`, a text that changes with them, or set cache: memory"
        )
    return Plan(dataset.name, fingerprint, len(dataset), dataset.image_size)


def _facts(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """What a whole cache says of itself: its name vouches for the source, its size for the end. None for any other."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return facts if (folder / IMAGES).stat().st_size == plan.total_bytes else None
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@contextmanager
def _one_builder(folder: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of one that dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _tell(f"waiting for another process, which builds the disk cache {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(dataset: DecodedImages, plan: Plan, folder: Path, log: UnreadableLog) -> dict[str, Any]:
    if folder.exists():
        logger.warning("the disk cache %s is damaged, it is built anew", folder)
        shutil.rmtree(folder)
    scratch = folder.with_name(f"{folder.name}.building")
    scratch.mkdir(exist_ok=True)
    journal = _read_journal(scratch, plan)
    done = min(len(journal) * CHUNK, plan.count)
    _require_space(scratch, plan, done)
    begun = f", {done:,} of them there already" if done else ""
    size = f"{plan.total_bytes / 1e9:.1f} GB"
    _tell(f"caching {plan.name} on disk: {plan.count:,} images at {plan.image_size} px{begun}, {size} in {folder}")
    log.update([Unreadable(**one) for line in journal for one in line["unreadable"]])
    for line in _decode(dataset, plan, scratch, done, log):
        journal.append(line)
        _append(scratch / JOURNAL, line)
    facts = {
        **asdict(plan),
        "checksums": [line["checksum"] for line in journal],
        "unreadable": [one for line in journal for one in line["unreadable"]],
    }
    write_text(scratch / FACTS, json.dumps(facts))
    (scratch / JOURNAL).unlink()
    os.rename(scratch, folder)
    return facts


def _decode(
    dataset: DecodedImages, plan: Plan, scratch: Path, done: int, log: UnreadableLog
) -> Iterator[dict[str, Any]]:
    """Decodes from image `done` on; yields a line of the journal when its images are safe on the disk."""
    reads = (partial(dataset.source.read, index) for index in range(done, plan.count))
    path = scratch / IMAGES
    path.touch()
    with path.open("r+b") as file, progress_bar(plan.count, plan.name, done) as bar:
        file.seek(done * plan.image_bytes)
        for chunk in decode_chunks(reads, plan.image_size, plan.name, CHUNK, start=done):
            block = np.zeros((len(chunk), plan.image_bytes), dtype=np.uint8)
            for row, result in zip(block, chunk, strict=True):
                if not isinstance(result, Unreadable):
                    row[:] = result[0].numpy().reshape(-1)
            unreadable = [result for result in chunk if isinstance(result, Unreadable)]
            log.update(unreadable)
            file.write(block.data)
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(chunk))
            done += len(chunk)
            if bar.disable and done * 10 // plan.count > (done - len(chunk)) * 10 // plan.count:
                _tell(f"caching {plan.name} on disk: {done:,} of {plan.count:,} images")
            yield {"checksum": _checksum(block), "unreadable": [asdict(one) for one in unreadable]}


def _read_journal(scratch: Path, plan: Plan) -> list[dict[str, Any]]:
    """What an interrupted process has written, less a torn last line; nothing where its last images are not there."""
    path, images = scratch / JOURNAL, scratch / IMAGES
    lines: list[dict[str, Any]] = []
    if path.exists() and images.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    size = CHUNK * plan.image_bytes
    if lines:
        with images.open("rb") as file:
            file.seek((len(lines) - 1) * size)
            if _checksum(file.read(size)) != lines[-1]["checksum"]:
                lines = []
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
    return lines


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(line)}\n")
        file.flush()
        os.fsync(file.fileno())


def _require_space(scratch: Path, plan: Plan, done: int) -> None:
    needed, free = plan.total_bytes - done * plan.image_bytes, shutil.disk_usage(scratch).free
    if needed > free:
        raise ValueError(
            f"{plan.count} images at image_size {plan.image_size} need {needed / 1e9:.1f} GB, above the "
            f"{free / 1e9:.1f} GB free in {scratch.parent}; set cache_dir to a larger disk, or a smaller image_size"
        )


def _checksum(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
