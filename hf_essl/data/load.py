"""From the arguments of a recipe, or from a dataset object, to decoded images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset, IterableDataset

from hf_essl.common import evenly_spaced
from hf_essl.config import DataArguments
from hf_essl.data.bank import stream_bank, stream_images
from hf_essl.data.builtin import DATASETS, BuiltInDataset, built_in
from hf_essl.data.cache import cache_images, check_memory
from hf_essl.data.columns import as_stream
from hf_essl.data.dataset import DecodedImages, ImageDataset, Items, Rows, image_count
from hf_essl.data.depth import SAMPLES, check_depth
from hf_essl.data.disk_cache import disk_cache
from hf_essl.data.sources import locate
from hf_essl.data.splits import choose_splits
from hf_essl.data.tables import from_dataset, read_all, read_splits

Device = torch.device | str


@dataclass(frozen=True)
class Images:
    """The images of a recipe.

    train: a map-style dataset, or an endless `StreamedImages`.
    eval: evaluation images, or None. They have labels, unless eval_split or eval_holdout asks for images without.
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
    splits = source.open([split for split in (train_split, eval_split) if split])
    if args.streaming:
        rows = splits.stream(train_split)
        rows = rows if args.max_train_samples is None else rows.take(args.max_train_samples)
        stream = stream_images(rows, args, source.name, seed)
        return Images(stream, *((None, None) if train_only else stream_bank(stream, splits, eval_split, args)))
    decoded, held_out = read_splits(args, splits, source.name, train_split, eval_split)
    if cache_on is not None:
        check_memory(len(decoded) + len(held_out or ()), args.image_size, cache_on)
    train = _cached(decoded, args, cache_on)
    return Images(train, held_out and _cached(held_out, args, cache_on), train if decoded.labels is not None else None)


def as_images(source: Any, args: DataArguments, device: Device | None = None) -> ImageDataset:
    """All decoded images of an object of the Python API; the limits and eval_holdout apply to recipes only.

    Args:
        source: a `datasets.Dataset` or `IterableDataset` with an image column; a path, a Hub id or the name of a
            built-in dataset, of which it reads args.train_split; a torch dataset, map-style or iterable, of what
            `decode` accepts, bare, in (image, label) pairs or in dicts under the names of the columns; or decoded
            images, which are returned as they are.
        device: the accelerator, for cache: device.

    Raises ValueError as `load_images` does, and for a source of another kind.
    """
    if isinstance(source, ImageDataset):
        return source
    if isinstance(source, (str, Path)):
        args = replace(args, dataset=str(source), max_train_samples=None)
        return load_images(args, device, train_only=True).train
    cache_on = _check(args, device)
    if isinstance(source, IterableDataset) and not isinstance(source, datasets.IterableDataset):
        source = as_stream(source, args.image_column)
    if isinstance(source, datasets.IterableDataset):
        return stream_images(source.with_format(None), args, "stream")
    if isinstance(source, datasets.Dataset):
        return _cached(from_dataset(source, args), args, cache_on)
    if not isinstance(source, (Dataset, list, tuple)):
        raise ValueError(
            f"the dataset is a {type(source).__name__}; pass one split as a datasets.Dataset, a path, or a torch "
            f"dataset of images"
        )
    items = Items(source, args.image_column, args.label_column, args.white_level)
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
    if args.white_level is None and isinstance(images.source, Rows):
        check_depth((images.source.read(at)[0] for at in evenly_spaced(len(images), SAMPLES)), images.name)
    if args.cache == "disk":
        root = Path(args.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
        return disk_cache(images, root, args.max_unreadable)
    return images if cache_on is None else cache_images(images, cache_on, args.max_unreadable)


def load_all_splits(args: DataArguments) -> dict[str, ImageDataset]:
    """Every image of a dataset by split, decoded each time it is read, with one list of classes.

    Raises ValueError as `load_images` does, and for a stream.
    """
    args.check()
    if args.streaming:
        raise ValueError("streaming is true; all splits are read by index, set streaming: false")
    source = built_in(args.dataset) or locate(args)
    if isinstance(source, BuiltInDataset):
        return {split: source.load(split, args.image_size, "cpu") for split in source.splits}
    return dict(read_all(args, source.open(list(source.splits)), source.name, source.splits))
