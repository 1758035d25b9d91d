"""Where images come from: a Hub id, a folder of images or parquet files, a parquet file, or a saved dataset."""

import glob
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError
from pyarrow import parquet

from hf_essl.common import one_line
from hf_essl.config import DataArguments
from hf_essl.data.builtin import built_in_names
from hf_essl.data.folders import ImageFolder
from hf_essl.data.inventory import count_notice
from hf_essl.data.listing import Listing, scan
from hf_essl.data.splits import find_train_split

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
UNMATCHED = re.compile(r"[*?\[\]]|::")
SAVED = ("state.json", "dataset_info.json")  # files of a dataset that `save_to_disk` wrote
SHARDS = 64  # of a stream over stored rows, which are shared by processes and workers


class Splits(Protocol):
    """The opened splits of a dataset."""

    def rows(self, split: str) -> datasets.Dataset: ...

    def stream(self, split: str) -> datasets.IterableDataset: ...


@dataclass(frozen=True)
class Location:
    """A dataset that was found: its name, its splits, and a function that opens some of them."""

    name: str
    splits: list[str]
    open: Callable[[list[str]], Splits]


@dataclass(frozen=True)
class Stored:
    """Splits whose rows are already there."""

    splits: Mapping[str, datasets.Dataset]

    def rows(self, split: str) -> datasets.Dataset:
        return self.splits[split]

    def stream(self, split: str) -> datasets.IterableDataset:
        rows = self.splits[split]
        return rows.to_iterable_dataset(num_shards=max(1, min(SHARDS, len(rows))))


@dataclass(frozen=True)
class Built:
    """Splits that `datasets` downloads and converts, or streams."""

    builder: datasets.DatasetBuilder
    name: str

    def rows(self, split: str) -> datasets.Dataset:
        """Raises ValueError if the dataset cannot be downloaded or read."""
        try:
            self.builder.download_and_prepare()
        except (DatasetGenerationError, ValueError) as error:  # an ArrowInvalid of pyarrow is a ValueError
            why = one_line(error.__cause__ or error)
            if "BatchSize must be greater than 0" in why:
                why = "a parquet file has no rows; remove it"
            raise ValueError(f"dataset {self.name} cannot be read: {why}") from error
        except (ConnectionError, HfHubHTTPError) as error:
            raise _unreachable(self.name, error) from error
        return self.builder.as_dataset(split)

    def stream(self, split: str) -> datasets.IterableDataset:
        return self.builder.as_streaming_dataset(split)


def locate(args: DataArguments) -> Location:
    """Finds the dataset of the arguments; reads names only, and logs what a folder contains besides.

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
    return _built(args.dataset, _find_builder(args.dataset, args.dataset, args.dataset_config))


def _locate_path(path: Path, args: DataArguments) -> Location:
    if path.is_file():
        return _locate_file(path, args)
    if (path / "dataset_dict.json").exists() or all((path / name).exists() for name in SAVED):
        _refuse_config(path, args)
        saved = datasets.load_from_disk(str(path))
        stored = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return Location(path.resolve().name, list(map(str, stored)), lambda _: Stored(stored))
    listing = scan(path)
    if listing.tables and (not listing.images or _has_column(listing, args.image_column)):
        return _locate_tables(path, listing, args)
    _refuse_config(path, args)
    name = path.resolve().name
    if not listing.images:
        listing.report(name)
        raise ValueError(f"dataset is the folder {path}, which contains neither images nor parquet files")
    count_notice(name, listing.tables, "parquet file", f"left out because it has no column {args.image_column}")
    folder = ImageFolder.of(name, listing, args.train_split, args.eval_split)
    return Location(name, list(folder.splits), lambda splits: Stored(folder.open(splits, args.label_column)))


def _locate_file(path: Path, args: DataArguments) -> Location:
    _refuse_config(path, args)
    if "::" in str(path):
        raise ValueError(f"dataset is {path}; `datasets` reads no file below a name with ::, rename it")
    if path.suffix.lower() != ".parquet":
        raise ValueError(f"dataset is the file {path}; give a parquet file, or a folder of images or parquet files")
    return _parquet_location(path.stem, {"train": [str(path)]})


def _locate_tables(path: Path, listing: Listing, args: DataArguments) -> Location:
    """A folder of parquet files; files that `datasets` finds no split for are the training split if it has none."""
    if UNMATCHED.search(str(listing.root)):
        raise ValueError(
            f"dataset is {path}; `datasets` finds no parquet files below a name with * ? [ ] or ::, rename it"
        )
    count_notice(path.name, list(listing.images), "image file", "left out beside the parquet files")
    builder = _find_builder(str(path), path.name, args.dataset_config)
    by_split = {
        str(split): [file for file in files if file.endswith(".parquet")]
        for split, files in (builder.config.data_files or {}).items()
    }
    by_split = {split: files for split, files in by_split.items() if files}
    claimed = {Path(file).resolve() for files in by_split.values() for file in files}
    rest = [table for table in listing.tables if (listing.root / table).resolve() not in claimed]
    if not rest or len(builder.builder_configs) > 1:
        return _built(path.name, builder)
    if find_train_split("train", by_split) is None:
        by_split["train"] = [str(listing.root / table) for table in rest]
        count_notice(path.name, rest, "parquet file", "in the training split because the name has no other split")
        return _parquet_location(path.name, by_split)
    why = f"left out because the name has none of the splits {', '.join(by_split)} (as in train-00.parquet)"
    count_notice(path.name, rest, "parquet file", why)
    return _built(path.name, builder)


def _parquet_location(name: str, files: dict[str, list[str]]) -> Location:
    escaped = {str(split): [glob.escape(file) for file in some] for split, some in files.items()}
    builder = datasets.load_dataset_builder("parquet", data_files=escaped)
    return _built(name, builder)


def _built(name: str, builder: datasets.DatasetBuilder) -> Location:
    splits = [str(split) for split in builder.config.data_files or builder.info.splits or []]
    return Location(name, splits, lambda _: Built(builder, name))


def _has_column(listing: Listing, column: str) -> bool:
    """Whether a parquet file has the column, or cannot be read, which its reader then reports."""
    try:
        return any(column in parquet.read_schema(listing.root / table).names for table in listing.tables)
    except (pa.ArrowException, OSError):
        return True


def _refuse_config(path: Path, args: DataArguments) -> None:
    if args.dataset_config is not None:
        raise ValueError(f"dataset_config is {args.dataset_config}; {path} has none, remove the setting")


def _find_builder(path: str, name: str, config: str | None) -> datasets.DatasetBuilder:
    """Of a Hub id or a folder of parquet files; `datasets` finds the splits."""
    try:
        if config is not None:
            choices = datasets.get_dataset_config_names(path)
            if config not in choices:
                raise ValueError(f"dataset_config is {config}; the configurations of {name} are {', '.join(choices)}")
        return datasets.load_dataset_builder(path, config)
    except DatasetNotFoundError as error:
        raise ValueError(
            f"dataset {name} is neither a local folder nor a dataset on the Hub that you can access; check the name, "
            f"and set HF_TOKEN if it is private or gated"
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise _unreachable(name, error) from error
    except (ValueError, RuntimeError) as error:  # RuntimeError: a folder or repository with a script of its name
        if config is None and "Config name is missing" in str(error):
            choices = datasets.get_dataset_config_names(path)
            raise ValueError(f"dataset {name} needs a dataset_config: {', '.join(choices)}") from error
        raise ValueError(one_line(error)) from error


def _unreachable(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"dataset {name} is not a local folder, and the Hub cannot be reached ({one_line(error)}); check the name, "
        f"the connection and HF_HUB_OFFLINE, or use {built_in_names()}"
    )
