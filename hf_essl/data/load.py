"""From the arguments of a recipe, or from a dataset object, to decoded images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset

from hf_essl.common import evenly_spaced
from hf_essl.config import DataArguments
from hf_essl.data.builtin import DATASETS, BuiltInDataset
from hf_essl.data.cache import CachedImages, cache_images, decode_all, require_memory
from hf_essl.data.dataset import DecodedImages, ImageDataset, Items, Rows
from hf_essl.data.disk_cache import disk_cache
from hf_essl.data.labels import encode_labels
from hf_essl.data.sources import Location, choose_splits, encoded_images, locate, prepare
from hf_essl.data.stream import StreamedImages
from hf_essl.data.unreadable import UnreadableLog

CACHES = ("none", "memory", "disk", "device")
BANK_SIZE = 5_000  # first images of a stream that are kept as the neighbours of the kNN evaluation


@dataclass(frozen=True)
class Images:
    """The images of a recipe.

    train: a map-style dataset, or an endless `StreamedImages`.
    eval: labelled evaluation images, or None.
    bank: labelled training images, the neighbours of the kNN evaluation; None without labels. It is `train` itself
        where that is map-style; of a stream it is the first images, at most 5,000 or max_train_samples, in memory.
    """

    train: ImageDataset
    eval: ImageDataset | None
    bank: ImageDataset | None


def load_images(args: DataArguments, device: torch.device | str | None = None, seed: int = 0) -> Images:
    """The training and evaluation images that the arguments name.

    Args:
        device: the accelerator, for cache: device.
        seed: of the shuffling of a stream; the same in all processes.

    Raises:
        ValueError: in one line, for anything the arguments name that does not exist or cannot be read, for images that
            do not fit the free memory, and for too many unreadable ones in a cache.
    """
    cache_on = _check(args, device)
    embedded = _embedded(args)
    if embedded is not None:
        train_split, eval_split = choose_splits(args, list(embedded.splits))
        train = _load_embedded(embedded, train_split, args, cache_on)
        train = train.take(range(_at_most(args.max_train_samples, len(train))))
        held = _load_embedded(embedded, eval_split, args, cache_on) if eval_split else None
        held = held and held.take(evenly_spaced(len(held), args.max_eval_samples))
        return Images(train, held, train)
    location = locate(args)
    train_split, eval_split = choose_splits(args, location.splits)
    if args.streaming:
        return _stream_images(args, location, train_split, eval_split, seed)
    decoded, held_decoded = _read_splits(args, location, train_split, eval_split)
    if cache_on is not None:
        require_memory(len(decoded) + len(held_decoded or ()), args.image_size, cache_on)
    kept = _kept(decoded, args, cache_on)
    labelled = held_decoded is not None and held_decoded.labels is not None
    return Images(
        train=kept,
        eval=_kept(held_decoded, args, cache_on) if held_decoded is not None and labelled else None,
        bank=kept if decoded.labels is not None else None,
    )


def as_images(source: Any, args: DataArguments, device: torch.device | str | None = None) -> ImageDataset:
    """Decoded images from an object of the Python API, all of them: limits and hold-out are for recipes.

    Args:
        source: a `datasets.Dataset` or `IterableDataset` with an image column; a path, Hub id or photo-patches, of
            which args.train_split is taken; a torch dataset of PIL images or uint8 3 x H x W tensors, alone, in
            (image, label) pairs or in dicts under the names of the columns; or decoded images, which stay as they are.
        device: the accelerator, for cache: device.

    Raises ValueError as `load_images` does, and for a source of another kind.
    """
    if isinstance(source, ImageDataset):
        return source
    if isinstance(source, (str, Path)):
        return _split_images(replace(args, dataset=str(source), max_train_samples=None), device)
    cache_on = _check(args, device)
    if isinstance(source, datasets.IterableDataset):
        stream = encoded_images(source, args.image_column, "the stream")
        return StreamedImages(stream, args.image_column, args.image_size, "stream")
    if isinstance(source, datasets.Dataset):
        name = source.info.dataset_name or "dataset"
        rows = encoded_images(source.with_format(None), args.image_column, name)
        return _kept(_decoded(rows, args, name), args, cache_on)
    if not isinstance(source, (Dataset, list, tuple)):
        raise ValueError(
            f"the dataset is a {type(source).__name__}; give one split as a datasets.Dataset, a path, or a torch "
            f"dataset of images"
        )
    return _kept(DecodedImages(Items(source, args.image_column, args.label_column), args.image_size), args, cache_on)


def _at_most(limit: int | None, total: int) -> int:
    return total if limit is None else min(limit, total)


def _check(args: DataArguments, device: torch.device | str | None) -> torch.device | str | None:
    """Refuses values that cannot work; returns the device of a cache in memory, None without one."""
    args.check()
    for name in ("max_train_samples", "max_eval_samples"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it is a number of images from 1 on, or nothing for all")
    if args.cache not in CACHES:
        raise ValueError(f"cache is {args.cache}; it is one of {', '.join(CACHES)}")
    if _embedded(args) is not None:
        if args.streaming:
            raise ValueError(f"streaming is true with {args.dataset}, which is in memory; set streaming: false")
        if args.dataset_config is not None:
            raise ValueError(f"dataset_config is {args.dataset_config}; {args.dataset} has none, drop it")
    if args.cache == "device" and device is None:
        raise ValueError("cache is device, but no device was given; pass device=, or set cache: memory")
    return {"memory": "cpu", "device": device}.get(args.cache)


def _kept(images: DecodedImages, args: DataArguments, cache_on: torch.device | str | None) -> ImageDataset:
    if args.cache == "disk":
        root = Path(args.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
        return disk_cache(images, root, args.max_unreadable)
    return images if cache_on is None else cache_images(images, cache_on, args.max_unreadable)


def _embedded(args: DataArguments) -> BuiltInDataset | None:
    """The built-in data set that the arguments name, if it needs no download."""
    known = DATASETS.get(args.dataset)
    return known if known is not None and known.load is not None else None


def _load_embedded(
    known: BuiltInDataset, split: str, args: DataArguments, cache_on: torch.device | str | None
) -> CachedImages:
    assert known.load is not None, "`_embedded` has checked"
    return known.load(split, args.image_size, cache_on or "cpu")


def _split_images(args: DataArguments, device: torch.device | str | None) -> ImageDataset:
    """All images of the training split."""
    cache_on = _check(args, device)
    embedded = _embedded(args)
    if embedded is not None:
        return _load_embedded(embedded, choose_splits(args, list(embedded.splits))[0], args, cache_on)
    location = locate(args)
    split, _ = choose_splits(replace(args, eval_split=None), location.splits)
    if args.streaming:
        rows = location.builder([split]).as_streaming_dataset(split)
        rows = encoded_images(rows, args.image_column, location.name)
        return StreamedImages(rows, args.image_column, args.image_size, location.name)
    images, _ = _read_splits(replace(args, eval_holdout=0.0), location, split, None)
    return _kept(images, args, cache_on)


def _read_splits(
    args: DataArguments, location: Location, train_split: str, eval_split: str | None
) -> tuple[DecodedImages, DecodedImages | None]:
    builder = location.builder([split for split in (train_split, eval_split) if split])
    prepare(builder, location.name)
    train = encoded_images(builder.as_dataset(train_split), args.image_column, location.name)
    held = None
    if eval_split is not None:
        held = encoded_images(builder.as_dataset(eval_split), args.image_column, location.name)
    elif args.eval_holdout > 0:
        out = evenly_spaced(len(train), max(1, round(args.eval_holdout * len(train))))
        held, train = train.select(out), train.select(sorted(set(range(len(train))) - set(out)))
    images = _decoded(train, args, location.name)
    if args.max_train_samples is not None:
        first = train.select(range(_at_most(args.max_train_samples, len(train))))
        images = _decoded(first, args, location.name, images.classes)
    if held is None:
        return images, None
    held = held.select(evenly_spaced(len(held), args.max_eval_samples))
    return images, _decoded(held, args, location.name, images.classes)


def _decoded(
    rows: datasets.Dataset, args: DataArguments, name: str, classes: list[str] | None = None
) -> DecodedImages:
    labels = None
    if args.label_column in rows.features:
        values = rows.select_columns([args.label_column])[:][args.label_column]
        names = getattr(rows.features[args.label_column], "names", None) or classes
        labels, classes = encode_labels(values, names, args.label_column)
    return DecodedImages(Rows(rows, args.image_column, labels, classes, name), args.image_size)


def _stream_images(
    args: DataArguments, location: Location, train_split: str, eval_split: str | None, seed: int
) -> Images:
    """A stream for training; the bank and the evaluation images are decoded into memory."""
    if eval_split is None and args.eval_holdout > 0:
        raise ValueError(
            f"eval_holdout is {args.eval_holdout} with streaming: true, which knows no length; name an eval_split"
        )
    builder = location.builder([split for split in (train_split, eval_split) if split])
    rows = encoded_images(builder.as_streaming_dataset(train_split), args.image_column, location.name)
    if args.max_train_samples is not None:
        rows = rows.take(args.max_train_samples)
    train = StreamedImages(rows, args.image_column, args.image_size, location.name, seed)
    if args.label_column not in rows.features:
        return Images(train, None, None)
    bank, labels = _decode_rows(train.shuffled(0), _at_most(args.max_train_samples, BANK_SIZE), args, location.name)
    held, held_labels = None, list[Any]()
    if eval_split is not None:
        held_rows = encoded_images(builder.as_streaming_dataset(eval_split), args.image_column, location.name)
        total = sum(1 for _ in held_rows.select_columns([args.label_column]))
        wanted = set(evenly_spaced(total, args.max_eval_samples))
        chosen = (row for index, row in enumerate(held_rows) if index in wanted)
        held, held_labels = _decode_rows(chosen, len(wanted), args, location.name)
    names = getattr(rows.features[args.label_column], "names", None)
    if names is None and all(isinstance(label, str) for label in labels + held_labels):
        names = sorted(set(labels + held_labels))
    return Images(
        train,
        None if held is None else _labelled(held, held_labels, names, args, location.name),
        _labelled(bank, labels, names, args, location.name),
    )


def _decode_rows(rows, count: int, args: DataArguments, name: str) -> tuple[torch.Tensor, list[Any]]:
    reads = (partial(_pair, row, args) for row in islice(rows, count))
    return decode_all(reads, count, args.image_size, "cpu", name, UnreadableLog(None, args.max_unreadable))


def _pair(row: dict[str, Any], args: DataArguments) -> tuple[Any, Any]:
    return row[args.image_column], row.get(args.label_column)


def _labelled(
    images: torch.Tensor, labels: Sequence[Any], names: list[str] | None, args: DataArguments, name: str
) -> CachedImages | None:
    encoded, classes = encode_labels(labels, names, args.label_column)
    return None if encoded is None else CachedImages(images, encoded, classes, name)
