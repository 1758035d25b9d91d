"""Embeds every image of a dataset with a backbone, into one parquet file; an interrupted embedding continues.

Finished parts are parquet files of their own in `<output>.parts/`, written beside their name and then moved there, so
that a part is whole or absent. The last step joins them, one at a time.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import Accelerator
from pyarrow import parquet
from torch import nn
from tqdm.auto import tqdm

from hf_essl.common import write_text
from hf_essl.config import DataArguments
from hf_essl.data import NO_LABEL, ImageDataset, image_count
from hf_essl.data.load import load_all_splits
from hf_essl.evaluation.backbone import LoadedBackbone, data_of_run, find_backbone, load_backbone, run_recipe
from hf_essl.evaluation.features import extract_features
from hf_essl.evaluation.patches import PatchFeatures, check_pool
from hf_essl.methods.backbone import fingerprint
from hf_essl.run_lock import run_lock

PART, PATCH_PART = 2048, 256  # images of a part: at most as many are computed again after an interruption
MANIFEST = "manifest.json"
INFO = b"hf_essl"  # key of the facts in the metadata of the file
UNREADABLE = b"unreadable"  # key of the names in the metadata of a part


@dataclass(frozen=True)
class Embedded:
    """What `embed` has written."""

    path: Path
    rows: int
    dimensions: int
    unreadable: list[str]  # names of images without a row
    seconds: float
    computed: int  # images of this call, without those of an interrupted one


def embed(
    source: str,
    data: DataArguments,
    output: str | Path,
    *,
    which: str = "student",
    backbone: str | None = None,
    resolution: int | None = None,
    crop_pct: float | None = None,
    pool: str | None = None,
    image_size: int | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    patches: bool = False,
    overwrite: bool = False,
) -> Embedded:
    """Writes a row per image: path, split (of several), label and class (if known), embedding (float32 of length D).

    Memory does not grow with the number of images. The same call continues an interrupted one.

    Args:
        source, which, backbone, resolution, crop_pct, pool: see `load_backbone`.
        data: the dataset, with all of its splits.
        output: the parquet file.
        image_size: side of the decoded images; by default that of the backbone's run, but at least the resolution.
        patches: an embedding is N x D, the features of the image's patches, row by row (see `PatchFeatures`).
        overwrite: replace the file if it exists, and start over if an interrupted embedding had other settings.

    Raises ValueError in one line, for a file that exists, for an interrupted embedding with other settings, and while
    another process writes the same file.
    """
    start, output, folder = time.perf_counter(), Path(output), find_backbone(source)
    check_pool(pool, patches)
    loaded = load_backbone(folder, which=which, backbone=backbone, resolution=resolution, crop_pct=crop_pct, pool=pool)
    data = data_of_run(data, run_recipe(folder), loaded.resolution, image_size)
    splits = load_all_splits(replace(data, cache="none"))
    settings = _settings(loaded, which, data, splits)
    if patches:
        network = PatchFeatures(loaded.network, loaded.resolution)
        loaded = loaded._replace(backbone=nn.Sequential(network, nn.Flatten()))
        settings |= {"patches": list(network.grid), "part": PATCH_PART}
    parts = output.with_name(f"{output.name}.parts")
    if output.exists() and not overwrite:
        raise ValueError(f"output {output} exists; choose another --output, or replace it with --overwrite")
    with run_lock(parts, "output"):
        _prepare(parts, settings, overwrite)
        computed = _write_parts(loaded, splits, parts, settings, batch_size, num_workers)
        rows, dimensions, unreadable = _join(parts, output)
    return Embedded(output, rows, dimensions, unreadable, time.perf_counter() - start, computed)


def _settings(
    loaded: LoadedBackbone, which: str, data: DataArguments, splits: dict[str, ImageDataset]
) -> dict[str, Any]:
    """What must be equal for two parts to belong together; the dataset is also how the file's images are found."""
    return {
        "backbone": fingerprint(loaded.network.state_dict()),
        "which": which,
        "resolution": loaded.resolution,
        "crop_pct": loaded.crop_pct,
        "pool": loaded.pool,
        "image_size": data.image_size,
        "part": PART,
        "dataset": data.dataset,
        "dataset_config": data.dataset_config,
        "image_column": data.image_column,
        "label_column": data.label_column,
        "white_level": data.white_level,
        "images": {split: image_count(images) for split, images in splits.items()},
        "files": {split: _digest(images) for split, images in splits.items()},
        "labels": {split: _label_digest(images) for split, images in splits.items()},
    }


def _digest(images: ImageDataset) -> str | None:
    """A text that changes with the images; None if there is none."""
    return getattr(getattr(images, "source", None), "fingerprint", None)


def _label_digest(images: ImageDataset) -> str | None:
    """A text that changes with the labels and the classes; None without labels."""
    if images.labels is None:
        return None
    return hashlib.sha256(repr(images.classes).encode() + images.labels.cpu().numpy().tobytes()).hexdigest()[:16]


def _prepare(parts: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Leaves no parts in their folder, or those of an interrupted embedding with the same settings."""
    manifest = parts / MANIFEST
    begun = json.loads(manifest.read_text()) if manifest.exists() else {}
    changed = [name for name, value in settings.items() if begun.get(name) != value]
    if begun and changed and not overwrite:
        name = changed[0]
        raise ValueError(
            f"{parts} was begun with {name} {begun.get(name)}, which is now {settings[name]}; start over with "
            f"--overwrite, or choose another --output"
        )
    if not changed:
        return
    for file in (manifest, *parts.glob("part-*.parquet")):
        file.unlink(missing_ok=True)
    write_text(manifest, json.dumps(settings, indent=2))


def _write_parts(
    loaded: LoadedBackbone,
    splits: dict[str, ImageDataset],
    parts: Path,
    settings: dict[str, Any],
    batch_size: int,
    workers: int,
) -> int:
    """Computes the parts that are not there; returns the number of their images."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    computed = 0
    total = sum(image_count(images) or 0 for images in splits.values())
    with tqdm(total=total, desc="embedding", unit="image", disable=None) as bar:
        for number, (split, indices) in enumerate(_blocks(splits, settings["part"])):
            path = parts / f"part-{number:06d}.parquet"
            if not path.exists():
                kept: list[int] = []
                features, labels = extract_features(
                    loaded.backbone,
                    splits[split],
                    resolution=loaded.resolution,
                    mean=loaded.mean,
                    std=loaded.std,
                    crop_pct=loaded.crop_pct,
                    batch_size=batch_size,
                    num_workers=workers,
                    accelerator=accelerator,
                    dtype=torch.float32,
                    indices=indices,
                    kept=kept,
                )
                names = dict(
                    zip(indices, image_names(splits[split], settings["dataset"], split, indices), strict=True)
                )
                readable = [names.pop(index) for index in kept]
                table = _table(splits[split], split, readable, features, labels, settings.get("patches"))
                _write(path, table.replace_schema_metadata({UNREADABLE: json.dumps(list(names.values()))}))
                computed += len(indices)
            bar.update(len(indices))
    return computed


def _blocks(splits: dict[str, ImageDataset], part: int) -> Iterator[tuple[str, list[int]]]:
    for split, images in splits.items():
        count = image_count(images) or 0
        for start in range(0, count, part):
            yield split, list(range(start, min(start + part, count)))


def image_names(images: ImageDataset, dataset: str, split: str, indices: Sequence[int]) -> list[str]:
    """The path of each image below the folder of the dataset; split/index for one without a file of its own there."""
    root, names = Path(dataset).expanduser().resolve(), []
    for index in indices:
        path = images.path_of(index) if root.is_dir() else None
        below = path and Path(path).is_absolute() and Path(path).is_relative_to(root)
        names.append(Path(path).relative_to(root).as_posix() if path and below else f"{split}/{index}")
    return names


def _table(
    images: ImageDataset,
    split: str,
    names: list[str],
    features: torch.Tensor,
    labels: torch.Tensor | None,
    grid: Sequence[int] | None,
) -> pa.Table:
    """The rows of a part; the features of an image have D values, or N x D with a grid of N patches."""
    values, length = pa.array(features.float().contiguous().view(-1).numpy()), features.shape[1]
    if grid is not None:
        count = grid[0] * grid[1]
        values, length = pa.FixedSizeListArray.from_arrays(values, length // count), count
    indices = _labels(labels, len(names))
    classes = [None if index is None or images.classes is None else images.classes[index] for index in indices]
    columns = {
        "path": pa.array(names, pa.string()),
        "split": pa.array([split] * len(names), pa.string()),
        "label": pa.array(indices, pa.int64()),
        "class": pa.array(classes, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(values, length),
    }
    return pa.table(columns)


def _labels(labels: torch.Tensor | None, count: int) -> list[int | None]:
    return [None] * count if labels is None else [None if one == NO_LABEL else one for one in labels.tolist()]


def _write(path: Path, table: pa.Table) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    parquet.write_table(table, scratch)
    scratch.replace(path)


def _join(parts: Path, output: Path) -> tuple[int, int, list[str]]:
    """Streams the parts into one file and removes them.

    Returns its rows, the length of an embedding, and the names of the images without a row.
    """
    files = sorted(parts.glob("part-*.parquet"))
    schemas = [parquet.read_schema(file) for file in files]
    unreadable = [name for schema in schemas for name in json.loads(schema.metadata[UNREADABLE])]
    facts = json.loads((parts / MANIFEST).read_text())
    dropped = {name for name in ("label", "class") if all(_is_null(file, name) for file in files)}
    dropped |= {"split"} if len(facts["images"]) == 1 else set()
    kept = [name for name in schemas[0].names if name not in dropped]
    schema = pa.schema([schemas[0].field(name) for name in kept], metadata={INFO: json.dumps(facts).encode()})
    scratch, rows = output.with_name(f".{output.name}.tmp"), 0
    with parquet.ParquetWriter(scratch, schema) as writer:
        for file in files:
            table = parquet.read_table(file, columns=kept).cast(schema)
            if table.num_rows:  # `datasets` cannot read a file whose first row group is empty
                writer.write_table(table)
            rows += table.num_rows
    scratch.replace(output)
    shutil.rmtree(parts)
    kind = schema.field("embedding").type
    return rows, kind.value_type.list_size if "patches" in facts else kind.list_size, unreadable


def _is_null(file: Path, name: str) -> bool:
    column = parquet.read_table(file, columns=[name])[name]
    return column.null_count == len(column)
