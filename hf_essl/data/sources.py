"""Where images come from: a Hub id, a folder of images, a folder of parquet files, or a parquet file."""

import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from hf_essl.common import one_line
from hf_essl.compat import resolved_features
from hf_essl.config import DataArguments
from hf_essl.data.builtin import built_in_names

EVAL_SPLITS = ("validation", "valid", "val", "test")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Location:
    """A dataset that was found: its name, its splits, and a function that opens a builder for some of them."""

    name: str
    splits: list[str]
    builder: Callable[[list[str]], datasets.DatasetBuilder]


def locate(args: DataArguments) -> Location:
    """Finds the dataset of the arguments; reads names only.

    Raises ValueError for a path that does not exist, a folder without images, an unknown configuration, or a Hub id
    that is unknown, private or out of reach.
    """
    path = Path(args.dataset).expanduser()
    if path.exists():
        return _locate_path(path, args)
    if (
        args.dataset.startswith((".", "/", "~"))
        or args.dataset.endswith(".parquet")
        or not HUB_ID.fullmatch(args.dataset)
    ):
        raise ValueError(
            f"dataset is {args.dataset}, which does not exist; give a folder, a parquet file, a Hub id such as "
            f"user/name, or {built_in_names()}"
        )
    return _locate_builder(args.dataset, args.dataset, args.dataset_config)


def choose_splits(args: DataArguments, splits: list[str]) -> tuple[str, str | None]:
    """The training split and the evaluation split, or None if there is no evaluation split.

    Raises ValueError for a split that the dataset does not have.
    """
    for setting, split in (("train_split", args.train_split), ("eval_split", args.eval_split)):
        if split is not None and split not in splits:
            raise ValueError(f"{setting} is {split}; the splits of {args.dataset} are {', '.join(splits)}")
    found = [split for split in EVAL_SPLITS if split in splits and split != args.train_split]
    return args.train_split, args.eval_split or (found[0] if found else None)


def prepare(builder: datasets.DatasetBuilder, name: str) -> None:
    """Downloads a dataset and stores it in the cache of `datasets`. Raises ValueError if that fails."""
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:  # an ArrowInvalid of pyarrow is a ValueError
        raise ValueError(f"dataset {name} cannot be read: {one_line(error.__cause__ or error)}") from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise _unreachable(name, error) from error


def encoded_images(rows, image_column: str, name: str):
    """A `datasets` set or stream whose image column returns {"bytes", "path"}, so that only `decode` decodes.

    Raises ValueError for a column that is missing or contains no images.
    """
    features = resolved_features(rows)
    if image_column not in features:
        raise ValueError(f"image_column is {image_column}; the columns of {name} are {', '.join(features)}")
    kind = features[image_column]
    is_row = isinstance(kind, dict) and set(kind) == {"bytes", "path"}
    is_text = isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string", "binary", "large_binary")
    if not (is_row or is_text or isinstance(kind, datasets.Image)):
        raise ValueError(f"image_column {image_column} of {name} contains {kind}; it must be images, bytes or paths")
    return rows.cast_column(image_column, datasets.Image(decode=False))


def _locate_path(path: Path, args: DataArguments) -> Location:
    if path.is_dir() and _contains(path, _is_parquet):
        return _locate_builder(str(path), path.name, args.dataset_config)
    if args.dataset_config is not None:
        raise ValueError(f"dataset_config is {args.dataset_config}; {path} has none, remove the setting")
    if path.is_file():
        if not _is_parquet(path.name):
            raise ValueError(
                f"dataset is the file {path}; give a parquet file, or a folder of images or parquet files"
            )
        files = {"train": glob.escape(str(path))}
        return Location(path.stem, ["train"], lambda _: datasets.load_dataset_builder("parquet", data_files=files))
    if not _contains(path, _is_image):
        raise ValueError(f"dataset is the folder {path}, which contains neither images nor parquet files")
    folders = _split_folders(path, args.train_split)
    return Location(path.resolve().name, list(folders), lambda splits: _image_builder(folders, splits))


def _split_folders(path: Path, train_split: str) -> dict[str, Path]:
    """Folders by split: the sub-folders if they are named like splits, with a training split; else all is `train`."""
    parts = {part.name: part for part in sorted(path.iterdir()) if part.is_dir() and _contains(part, _is_image)}
    has_train, has_eval = {train_split, "train"} & set(parts), set(EVAL_SPLITS) & set(parts)
    if has_train and (has_eval or set(parts) <= {train_split, "train"}):
        return parts
    return {"train": path}


def _image_builder(folders: dict[str, Path], splits: list[str]) -> datasets.DatasetBuilder:
    chosen = {split: folders[split] for split in splits}
    files = {split: f"{glob.escape(str(folder))}/**" for split, folder in chosen.items()}
    # images directly in a split's folder have no class: `datasets` would use the names of the splits as labels
    unlabeled = any(_is_image(entry.name) for folder in chosen.values() for entry in os.scandir(folder))
    return datasets.load_dataset_builder("imagefolder", data_files=files, drop_labels=True if unlabeled else None)


def _locate_builder(path: str, name: str, config: str | None) -> Location:
    """A Hub id or a folder of parquet files; `datasets` finds the splits."""
    try:
        if config is not None:
            choices = datasets.get_dataset_config_names(path)
            if config not in choices:
                raise ValueError(f"dataset_config is {config}; the configurations of {name} are {', '.join(choices)}")
        builder = datasets.load_dataset_builder(path, config)
    except DatasetNotFoundError as error:
        raise ValueError(
            f"dataset {name} is neither a local folder nor a dataset on the Hub that you can access; check the name, "
            f"and set HF_TOKEN if it is private or gated"
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise _unreachable(name, error) from error
    except ValueError as error:
        if config is None and "Config name is missing" in str(error):
            choices = datasets.get_dataset_config_names(path)
            raise ValueError(f"dataset {name} needs a dataset_config: {', '.join(choices)}") from error
        raise ValueError(one_line(error)) from error
    splits = list(builder.config.data_files or builder.info.splits or [])
    return Location(name, [str(split) for split in splits], lambda _: builder)


def _unreachable(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"dataset {name} is not a local folder, and the Hub cannot be reached ({one_line(error)}); check the name, "
        f"the connection and HF_HUB_OFFLINE, or use {built_in_names()}"
    )


def _contains(path: Path, wanted: Callable[[str], bool]) -> bool:
    return any(wanted(name) for _, _, names in os.walk(path, followlinks=True) for name in names)


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet") and name != "metadata.parquet"  # that one describes a folder of images


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in Image.registered_extensions()
