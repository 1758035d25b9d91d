"""A folder of images: `folder/[split/][class/]…/image`.

A class is a folder of the first level below the split, at whatever depth its images are. An image outside of a class
folder has no label. A metadata file with the columns `file_name` and `label_column` replaces the folders' labels.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import csv, parquet
from pyarrow import json as json_lines

from hf_essl.common import one_line
from hf_essl.config import DataArguments
from hf_essl.config.fields import default_of
from hf_essl.data.inventory import count_notice, notice
from hf_essl.data.labels import is_missing
from hf_essl.data.listing import Listing
from hf_essl.data.splits import EVAL_NAMES, TRAIN_NAMES, find_split

READERS: dict[str, Callable[[str], pa.Table]] = {
    ".csv": csv.read_csv,
    ".jsonl": json_lines.read_json,
    ".parquet": parquet.read_table,
}


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder by split, as paths relative to the listing's root."""

    name: str
    listing: Listing
    splits: dict[str, list[str]]
    prefixed: bool  # whether the splits are folders, or all images are one split

    @classmethod
    def of(cls, name: str, listing: Listing, train_split: str, eval_split: str | None = None) -> "ImageFolder":
        """The folders of the first level are splits if their names say so, else classes of one split, `train`.

        They say so if there is one to train on and another to evaluate on, or only one to train on, or if all of
        several folders are named as splits.
        """
        folders: dict[str, list[str]] = {}
        for path in listing.images:
            if "/" in path:
                folders.setdefault(path.partition("/")[0], []).append(path)
        named = () if eval_split is None else (eval_split,)
        train, test = find_split((train_split, *TRAIN_NAMES), folders), find_split((*named, *EVAL_NAMES), folders)
        all_named = len(folders) > 1 and all(find_split((*TRAIN_NAMES, *EVAL_NAMES), [folder]) for folder in folders)
        if all_named or (train is not None and (test is not None or len(folders) == 1)):
            return cls(name, listing, folders, True)
        return cls(name, listing, {"train": list(listing.images)}, False)

    def open(self, chosen: list[str], label_column: str) -> dict[str, datasets.Dataset]:
        """The images of the chosen splits, {"image": {"bytes", "path"}, label_column: …}, with one list of classes.

        Logs what is left out, and which images have no label.
        """
        self.listing.report(self.name)
        self._report_other_splits(chosen)
        listed = _metadata_labels(self.name, self.listing, label_column)
        labels: dict[str, list[Any]] = {}
        if listed is not None:
            labels = {split: [listed.get(path) for path in self.splits[split]] for split in chosen}
        elif label_column == default_of(DataArguments, "label_column"):
            labels = {split: list(map(self._class_of, self.splits[split])) for split in chosen}
            self._report_nested(chosen)
        kinds = {isinstance(one, str) for some in labels.values() for one in some if one is not None}
        if len(kinds) == 2:  # numbers in one split, text in another: one set of names
            labels = {split: [one if one is None else str(one) for one in some] for split, some in labels.items()}
        present = {split: {str(one) for one in some if one is not None} for split, some in labels.items()}
        is_text = all(isinstance(one, str) for some in labels.values() for one in some if one is not None)
        names = sorted(set().union(*present.values())) if is_text else None
        return {
            split: self._dataset(split, label_column, labels[split] if present.get(split) else None, names)
            for split in chosen
        }

    def _class_of(self, path: str) -> str | None:
        parts = path.split("/")[self.prefixed :]
        return parts[0] if len(parts) > 1 else None

    def _report_other_splits(self, chosen: list[str]) -> None:
        for split in sorted(self.splits.keys() - set(chosen)):
            why = f"left out because {split} is neither the training nor the evaluation split"
            count_notice(self.name, self.splits[split], "image", why)
        if self.prefixed:
            outside = [path for path in self.listing.images if "/" not in path]
            count_notice(self.name, outside, "image", f"left out beside the splits {', '.join(sorted(self.splits))}")

    def _report_nested(self, chosen: list[str]) -> None:
        paths = [path for split in chosen for path in self.splits[split] if path.count("/") > 1 + self.prefixed]
        why = "in folders below a class folder, which belong to that class (metadata.csv can set other labels)"
        count_notice(self.name, paths, "image", why)

    def _dataset(self, split: str, column: str, labels: list[Any] | None, names: list[str] | None) -> datasets.Dataset:
        paths = self.splits[split]
        files = pa.array([str(self.listing.root / path) for path in paths], pa.string())
        columns = {"image": pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), files], ["bytes", "path"])}
        features = datasets.Features({"image": datasets.Image(decode=False)})
        if labels is not None and names is not None:
            index = {name: position for position, name in enumerate(names)}
            columns[column] = pa.array(map(index.get, labels), pa.int64())
            features[column] = datasets.ClassLabel(names=names)
        elif labels is not None:
            columns[column] = _column(labels)
            features |= datasets.Features.from_arrow_schema(pa.schema({column: columns[column].type}))
        info = datasets.DatasetInfo(features=datasets.Features(features))
        return datasets.Dataset(pa.table(columns), info, fingerprint=self._fingerprint(paths))

    def _fingerprint(self, paths: list[str]) -> str:
        """A text that changes with the names, sizes and modification times of the images."""
        digest = hashlib.sha256(str(self.listing.root).encode())
        for path in paths:
            digest.update(repr((path, *self.listing.images[path])).encode())
        return digest.hexdigest()[:16]


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowException:  # two metadata files with labels of different types
        return pa.array([None if value is None else str(value) for value in values])


def _metadata_labels(name: str, listing: Listing, column: str) -> dict[str, Any] | None:
    """The labels by path from all metadata files that have any; None if there is none. Logs what is not used."""
    labels: dict[str, Any] = {}
    missing, ambiguous = [], []
    for file in listing.metadata:
        try:
            table = READERS[Path(file).suffix.lower()](str(listing.root / file))
        except (pa.ArrowException, OSError) as error:
            notice(name, f"{file} is not used because it cannot be read: {one_line(error)}")
            continue
        if twice := [wanted for wanted in ("file_name", column) if table.column_names.count(wanted) > 1]:
            notice(name, f"{file} is not used because it has {table.column_names.count(twice[0])} columns {twice[0]}")
            continue
        if absent := [wanted for wanted in ("file_name", column) if wanted not in table.column_names]:
            found = ", ".join(table.column_names)
            notice(name, f"{file} is not used because it has no column {' or '.join(absent)}; its columns are {found}")
            continue
        for at, given in zip(table["file_name"].to_pylist(), table[column].to_pylist(), strict=True):
            label = None if is_missing(given) else given
            path = _below(PurePosixPath(file).parent, str(at))
            if path not in listing.images:
                missing.append(f"{at} of {file}")
            elif path in labels and labels[path] != label:
                ambiguous.append(path)
            labels[path] = label
    labels |= dict.fromkeys(ambiguous)
    count_notice(name, missing, "row", "left out of the metadata because the image does not exist")
    count_notice(name, ambiguous, "image", "without a label because the metadata has two different ones")
    return labels if any(label is not None for label in labels.values()) else None


def _below(folder: PurePosixPath, name: str) -> str:
    """The path of a file that a metadata file in `folder` names, without "." and ".."."""
    parts: list[str] = []
    for part in (folder / name.replace("\\", "/")).parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
