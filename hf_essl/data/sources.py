"""Where images come from: a Hub id, a folder of images, a folder of parquet files, or a parquet file."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from hf_essl.common import one_line
from hf_essl.compat import resolved_features
from hf_essl.config import DataArguments
from hf_essl.data.photo_patches import NAME as PHOTO_PATCHES

EVAL_SPLITS = ("validation", "valid", "val", "test")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Location:
    """A dataset that was found: its name, its splits, and what opens a builder for some of them."""

    name: str
    splits: list[str]
    builder: Callable[[list[str]], datasets.DatasetBuilder]


def locate(args: DataArguments) -> Location:
    """Finds the dataset of the arguments; nothing is read but names.

    Raises:
        ValueError: for a path that does not exist, a folder without images, an unknown configuration, or a Hub id that
            cannot be had (unknown, private, or the Hub out of reach).
    """
    path = Path(args.dataset).expanduser()
    if path.exists():
        return _local(path, args)
    if _is_path(args.dataset):
        raise ValueError(
            f"dataset is {args.dataset}, which does not exist; give a folder, a parquet file, a Hub id such as "
            f"user/name, or {PHOTO_PATCHES}"
        )
    return _built(args.dataset, args.dataset, args.dataset_config)


def choose_splits(args: DataArguments, splits: list[str]) -> tuple[str, str | None]:
    """The training split and the evaluation split, None where there is none.

    Raises ValueError for a split that the dataset lacks.
    """
    for setting, split in (("train_split", args.train_split), ("eval_split", args.eval_split)):
        if split is not None and split not in splits:
            raise ValueError(f"{setting} is {split}; the splits of {args.dataset} are {', '.join(splits)}")
    found = [split for split in EVAL_SPLITS if split in splits and split != args.train_split]
    return args.train_split, args.eval_split or (found[0] if found else None)


def prepare(builder: datasets.DatasetBuilder, name: str) -> None:
    """Downloads a dataset and stores it in the cache of `datasets`. Raises ValueError when that fails."""
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:  # of pyarrow: an ArrowInvalid is a ValueError
        cause = error.__cause__ or error
        raise ValueError(f"dataset {name} cannot be read: {one_line(cause)}") from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise _unreachable(name, error) from error


def encoded_images(rows, image_column: str, name: str):
    """A `datasets` set or stream whose image column yields {"bytes", "path"}: the decoding, and its errors, are ours.

    Raises ValueError for a column that is missing or holds no images.
    """
    features = resolved_features(rows)
    if image_column not in features:
        raise ValueError(f"image_column is {image_column}; the columns of {name} are {', '.join(features)}")
    kind = features[image_column]
    if not _may_be_image(kind):
        raise ValueError(f"image_column {image_column} of {name} holds {kind}; it takes images, their bytes or paths")
    return rows.cast_column(image_column, datasets.Image(decode=False))


def _may_be_image(kind: Any) -> bool:
    if isinstance(kind, dict):
        return set(kind) == {"bytes", "path"}
    strings = ("string", "large_string", "binary", "large_binary")
    return isinstance(kind, datasets.Image) or (isinstance(kind, datasets.Value) and kind.dtype in strings)


def _is_path(dataset: str) -> bool:
    return dataset.startswith((".", "/", "~")) or dataset.endswith(".parquet") or not HUB_ID.fullmatch(dataset)


def _local(path: Path, args: DataArguments) -> Location:
    if path.is_dir() and any(_matching(path, _is_parquet)):
        return _built(str(path), path.name, args.dataset_config)
    if args.dataset_config is not None:
        raise ValueError(f"dataset_config is {args.dataset_config}; {path} has none, drop the setting")
    if path.is_file():
        if not _is_parquet(path.name):
            raise ValueError(f"dataset is the file {path}; give a parquet file, or a folder of images or parquet")
        return Location(path.stem, ["train"], lambda splits: _parquet_builder(path))
    if not any(_matching(path, _is_image)):
        raise ValueError(f"dataset is the folder {path}, which holds neither images nor parquet files")
    folders = _split_folders(path, args.train_split)
    return Location(path.resolve().name, list(folders), lambda splits: _image_builder(folders, splits))


def _split_folders(path: Path, train_split: str) -> dict[str, Path]:
    """Folders by split: sub-folders named as splits are, the training split among them; else all is `train`."""
    parts = {part.name: part for part in sorted(path.iterdir()) if part.is_dir() and any(_matching(part, _is_image))}
    has_train, has_eval = {train_split, "train"} & set(parts), set(EVAL_SPLITS) & set(parts)
    if has_train and (has_eval or set(parts) <= {train_split, "train"}):
        return parts
    return {"train": path}


def _parquet_builder(path: Path) -> datasets.DatasetBuilder:
    return datasets.load_dataset_builder("parquet", data_files={"train": glob.escape(str(path))})


def _image_builder(folders: dict[str, Path], splits: list[str]) -> datasets.DatasetBuilder:
    chosen = {split: folders[split] for split in splits}
    files = {split: f"{glob.escape(str(folder))}/**" for split, folder in chosen.items()}
    # images straight in the folder of a split are a heap: `datasets` would take the names of the splits for labels
    heap = any(_is_image(entry.name) for folder in chosen.values() for entry in os.scandir(folder))
    return datasets.load_dataset_builder("imagefolder", data_files=files, drop_labels=True if heap else None)


def _built(path: str, name: str, config: str | None) -> Location:
    """A Hub id or a folder of parquet files; `datasets` knows the splits."""
    try:
        if config is not None:
            choices = datasets.get_dataset_config_names(path)
            if config not in choices:
                raise ValueError(f"dataset_config is {config}; the configurations of {name} are {', '.join(choices)}")
        builder = datasets.load_dataset_builder(path, config)
    except DatasetNotFoundError as error:
        raise ValueError(
            f"dataset {name} is neither a folder here nor open to you on the Hub; check the name, and set HF_TOKEN if "
            f"it is private or gated"
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise _unreachable(name, error) from error
    except ValueError as error:
        if config is None and "Config name is missing" in str(error):
            choices = datasets.get_dataset_config_names(path)
            raise ValueError(f"dataset {name} needs a dataset_config: {', '.join(choices)}") from error
        raise ValueError(one_line(error)) from error
    splits = list(builder.config.data_files or builder.info.splits or [])
    return Location(name, [str(split) for split in splits], lambda chosen: builder)


def _unreachable(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"dataset {name} is no folder here and the Hub cannot be reached for it ({one_line(error)}); check the name, "
        f"the connection and HF_HUB_OFFLINE, or take {PHOTO_PATCHES}"
    )


def _matching(path: Path, wanted: Callable[[str], bool]):
    return (name for _, _, names in os.walk(path, followlinks=True) for name in names if wanted(name))


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet") and name != "metadata.parquet"  # that one describes a folder of images


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in Image.registered_extensions()
