"""From the arguments of a recipe, or from a dataset object, to decoded images."""

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
from hf_essl.data.builtin import DATASETS, BuiltInDataset, built_in
from hf_essl.data.cache import CachedImages, cache_images, check_memory, decode_all
from hf_essl.data.dataset import DecodedImages, ImageDataset, Items, Rows, image_count
from hf_essl.data.decode import UnreadableLog
from hf_essl.data.disk_cache import disk_cache
from hf_essl.data.labels import encode_labels
from hf_essl.data.sources import choose_splits, encoded_images, locate, prepare
from hf_essl.data.stream import StreamedImages

BANK_SIZE = 5_000  # first images of a stream that are kept as the neighbors of the kNN evaluation
Device = torch.device | str


@dataclass(frozen=True)
class Images:
    """The images of a recipe.

    train: a map-style dataset, or an endless `StreamedImages`.
    eval: labeled evaluation images, or None.
    bank: labeled training images, the neighbors of the kNN evaluation; None without labels. It is `train` itself if
        that is map-style; of a stream it is the first images, at most 5,000 or max_train_samples, in memory.
    """

    train: ImageDataset
    eval: ImageDataset | None
    bank: ImageDataset | None


def load_images(
    args: DataArguments, device: Device | None = None, seed: int = 0, *, train_only: bool = False
) -> Images:
    """The training and evaluation images that the arguments name.

    Args:
        device: the accelerator, for cache: device.
        seed: of the shuffling of a stream; the same in all processes.
        train_only: without evaluation images, without a hold-out, and without the bank of a stream.

    Raises ValueError in one line, for anything that does not exist or cannot be read, for images that do not fit in
    the free memory, and for too many unreadable images in a cache.
    """
    cache_on = _check(args, device)
    args = replace(args, eval_split=None, eval_holdout=0.0) if train_only else args
    source = built_in(args.dataset) or locate(args)
    train_split, eval_split = choose_splits(args, list(source.splits))
    eval_split = None if train_only else eval_split
    if isinstance(source, BuiltInDataset):
        whole = source.load(train_split, args.image_size, cache_on or "cpu")
        first = whole.take(range(len(whole))[: args.max_train_samples])
        test = source.load(eval_split, args.image_size, cache_on or "cpu") if eval_split else None
        return Images(first, test and test.take(evenly_spaced(len(test), args.max_eval_samples)), first)
    builder = source.builder([split for split in (train_split, eval_split) if split])
    if args.streaming:
        rows = encoded_images(builder.as_streaming_dataset(train_split), args.image_column, source.name)
        rows = rows if args.max_train_samples is None else rows.take(args.max_train_samples)
        stream = StreamedImages(rows, args.image_column, args.image_size, source.name, seed)
        return Images(stream, None, None) if train_only else _with_bank(stream, builder, eval_split, args)
    prepare(builder, source.name)
    decoded, held_out = _read_splits(args, builder, source.name, train_split, eval_split)
    if cache_on is not None:
        check_memory(len(decoded) + len(held_out or ()), args.image_size, cache_on)
    train = _cached(decoded, args, cache_on)
    return Images(train, held_out and _cached(held_out, args, cache_on), train if decoded.labels is not None else None)


def as_images(source: Any, args: DataArguments, device: Device | None = None) -> ImageDataset:
    """All decoded images of an object of the Python API; the limits and eval_holdout apply to recipes only.

    Args:
        source: a `datasets.Dataset` or `IterableDataset` with an image column; a path, a Hub id or the name of a
            built-in dataset, of which it reads args.train_split; a torch dataset of PIL images or uint8 3 x H x W
            tensors, bare, in (image, label) pairs or in dicts under the names of the columns; or decoded images,
            which are returned as they are.
        device: the accelerator, for cache: device.

    Raises ValueError as `load_images` does, and for a source of another kind.
    """
    if isinstance(source, ImageDataset):
        return source
    if isinstance(source, (str, Path)):
        args = replace(args, dataset=str(source), max_train_samples=None)
        return load_images(args, device, train_only=True).train
    cache_on = _check(args, device)
    if isinstance(source, datasets.IterableDataset):
        stream = encoded_images(source, args.image_column, "the stream")
        return StreamedImages(stream, args.image_column, args.image_size, "stream")
    if isinstance(source, datasets.Dataset):
        name = source.info.dataset_name or "dataset"
        rows = encoded_images(source.with_format(None), args.image_column, name)
        return _cached(_decoded(rows, args, name), args, cache_on)
    if not isinstance(source, (Dataset, list, tuple)):
        raise ValueError(
            f"the dataset is a {type(source).__name__}; pass one split as a datasets.Dataset, a path, or a torch "
            f"dataset of images"
        )
    items = Items(source, args.image_column, args.label_column)
    return _cached(DecodedImages(items, args.image_size), args, cache_on)


def count_training_images(args: DataArguments) -> int:
    """The number of training images of the arguments, without reading them if it is known.

    Raises ValueError if the dataset cannot be found or read, or is a stream.
    """
    known = DATASETS.get(args.dataset)
    count = known.train_images if known else image_count(load_images(replace(args, cache="none")).train)
    if not count:
        raise ValueError(f"dataset {args.dataset} is a stream without a length; pass --images N")
    return min(count, args.max_train_samples or count)


def _check(args: DataArguments, device: Device | None) -> Device | None:
    """Rejects values that cannot work; returns the device of a cache in memory, None without such a cache."""
    args.check()
    if built_in(args.dataset) is not None:
        if args.streaming:
            raise ValueError(f"streaming is true with {args.dataset}, which is in memory; set streaming: false")
        if args.dataset_config is not None:
            raise ValueError(f"dataset_config is {args.dataset_config}; {args.dataset} has none, remove the setting")
    if args.cache == "device" and device is None:
        raise ValueError("cache is device, but no device was passed; pass device=, or set cache: memory")
    return {"memory": "cpu", "device": device}.get(args.cache)


def _cached(images: DecodedImages, args: DataArguments, cache_on: Device | None) -> ImageDataset:
    if args.cache == "disk":
        root = Path(args.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
        return disk_cache(images, root, args.max_unreadable)
    return images if cache_on is None else cache_images(images, cache_on, args.max_unreadable)


def _read_splits(
    args: DataArguments, builder: datasets.DatasetBuilder, name: str, train_split: str, eval_split: str | None
) -> tuple[DecodedImages, DecodedImages | None]:
    """The training images, and the evaluation images if they have labels."""
    train = encoded_images(builder.as_dataset(train_split), args.image_column, name)
    held_out = None
    if eval_split is not None:
        held_out = encoded_images(builder.as_dataset(eval_split), args.image_column, name)
    elif args.eval_holdout > 0:
        chosen = evenly_spaced(len(train), max(1, round(args.eval_holdout * len(train))))
        held_out, train = train.select(chosen), train.select(sorted(set(range(len(train))) - set(chosen)))
    images = _decoded(train, args, name)
    if args.max_train_samples is not None:  # the classes are those of all images
        first = train.select(range(len(train))[: args.max_train_samples])
        images = _decoded(first, args, name, images.classes)
    if held_out is None:
        return images, None
    test = _decoded(held_out.select(evenly_spaced(len(held_out), args.max_eval_samples)), args, name, images.classes)
    return images, None if test.labels is None else test


def _decoded(
    rows: datasets.Dataset, args: DataArguments, name: str, classes: list[str] | None = None
) -> DecodedImages:
    labels = None
    if args.label_column in rows.features:
        values = rows.select_columns([args.label_column])[:][args.label_column]
        names = getattr(rows.features[args.label_column], "names", None) or classes
        labels, classes = encode_labels(values, names, args.label_column)
    return DecodedImages(Rows(rows, args.image_column, labels, classes, name), args.image_size)


def _with_bank(
    train: StreamedImages, builder: datasets.DatasetBuilder, eval_split: str | None, args: DataArguments
) -> Images:
    """A stream for training; the bank and the evaluation images are decoded into memory."""
    if eval_split is None and args.eval_holdout > 0:
        raise ValueError(
            f"eval_holdout is {args.eval_holdout} with streaming: true; a stream has no length, name an eval_split"
        )
    if args.label_column not in train.stream.features:
        return Images(train, None, None)
    count = min(args.max_train_samples or BANK_SIZE, BANK_SIZE)
    decoded = [_decode_rows(train.shuffled(0), count, args, train.name)]
    if eval_split is not None:
        rows = encoded_images(builder.as_streaming_dataset(eval_split), args.image_column, train.name)
        total = sum(1 for _ in rows.select_columns([args.label_column]))
        wanted = set(evenly_spaced(total, args.max_eval_samples))
        chosen = (row for index, row in enumerate(rows) if index in wanted)
        decoded.append(_decode_rows(chosen, len(wanted), args, train.name))
    names = getattr(train.stream.features[args.label_column], "names", None)
    labels = [label for *_, part in decoded for label in part]
    if names is None and all(isinstance(label, str) for label in labels):
        names = sorted(set(labels))
    bank, *held_out = (_labeled(*part, names, args, train.name) for part in decoded)
    return Images(train, held_out[0] if held_out else None, bank)


def _decode_rows(rows, count: int, args: DataArguments, name: str) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    def read(row: dict[str, Any]) -> tuple[Any, Any]:
        return row[args.image_column], row.get(args.label_column)

    reads = (partial(read, row) for row in islice(rows, count))
    return decode_all(reads, count, args.image_size, "cpu", name, UnreadableLog(None, args.max_unreadable))


def _labeled(
    images: torch.Tensor,
    aspects: torch.Tensor,
    labels: Sequence[Any],
    names: list[str] | None,
    args: DataArguments,
    name: str,
) -> CachedImages | None:
    encoded, classes = encode_labels(labels, names, args.label_column)
    return None if encoded is None else CachedImages(images, encoded, classes, name, aspects)
