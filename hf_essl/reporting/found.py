"""Draws what a search in a file of `hf-essl embed` has found, from the dataset that the file names."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_essl.config import DataArguments
from hf_essl.data import image_count
from hf_essl.data.load import load_all_splits
from hf_essl.evaluation.search import Embeddings, Match
from hf_essl.reporting.neighbors import draw_matches


def draw_found(found: Embeddings, matches: Sequence[Match], path: Path, dataset: str | None = None) -> Path:
    """Draws one row per query: the image, then its neighbors under their cosines and above their names.

    Args:
        dataset: where the images are now; by default where they were.

    Raises ValueError if the file names no dataset, and for images that are not there or not as many.
    """
    dataset = dataset or found.facts.get("dataset")
    if dataset is None:
        raise ValueError("the file does not name the dataset of its images; pass --images, such as a folder")
    rows = sorted({row for match in matches for row in (match.query, *match.neighbors)})
    places = {row: _place(found.paths[row], found.facts.get("images", {})) for row in rows}
    if None in places.values():
        white = found.facts.get("white_level")
        return draw_matches(Path(dataset).expanduser(), found.paths, matches, path, white)
    with tempfile.TemporaryDirectory() as folder:
        _save(found, {row: place for row, place in places.items() if place}, dataset, Path(folder))
        return draw_matches(Path(folder), found.paths, matches, path)


def _place(name: str, counts: dict[str, int]) -> tuple[str, int] | None:
    """(split, index) of an image that is not a file."""
    split, _, index = name.rpartition("/")
    return (split, int(index)) if index.isdecimal() and int(index) < counts.get(split, 0) else None


def _save(found: Embeddings, places: dict[int, tuple[str, int]], dataset: str, folder: Path) -> None:
    """Writes the images under their names in the file."""
    facts = found.facts
    columns = {name: facts[name] for name in ("dataset_config", "image_column", "label_column", "image_size")}
    columns["white_level"] = facts.get("white_level")  # older files do not have it
    splits = load_all_splits(DataArguments(dataset=dataset, cache="none", **columns))
    counts = {split: image_count(images) for split, images in splits.items()}
    if counts != facts["images"]:
        raise ValueError(f"images of {dataset} are {counts} now, but {facts['images']} in the file; embed them again")
    for row, (split, index) in places.items():
        sample: Any = splits[split][index]
        picture = Image.fromarray(np.ascontiguousarray(sample["image"].permute(1, 2, 0).cpu().numpy()))
        target = folder / found.paths[row]
        target.parent.mkdir(parents=True, exist_ok=True)
        width = max(1, round(picture.height * float(sample["aspect"])))  # undoes the squash
        picture.resize((width, picture.height)).save(target, "PNG")
