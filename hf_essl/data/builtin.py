"""Datasets that the package knows by name.

To add a built-in one, write its loader in a new file and add a line to `DATASETS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_essl.data import photo_patches
from hf_essl.data.cache import CachedImages

IMAGENET_TERMS = "ImageNet's terms of access allow non-commercial research and education only"


@dataclass(frozen=True)
class KnownDataset:
    """What help, cost estimates and model cards say of a dataset."""

    description: str  # one line
    train_images: int
    terms: str  # of use of its images, one sentence without its period
    caveat: str = ""  # what an accuracy on it does not show


@dataclass(frozen=True, kw_only=True)
class BuiltInDataset(KnownDataset):
    """A dataset that needs no download."""

    splits: tuple[str, ...]  # the training split first
    load: Callable[[str, int, torch.device | str], CachedImages]  # of a split, at a side in pixels, on a device


DATASETS: dict[str, KnownDataset] = {
    photo_patches.NAME: BuiltInDataset(
        "labeled patches of scikit-image's 16 photographs, without a download",
        train_images=len(photo_patches.PHOTOS) * photo_patches.PER_CLASS["train"],
        terms=photo_patches.TERMS,
        caveat=photo_patches.CAVEAT,
        splits=photo_patches.SPLITS,
        load=photo_patches.photo_patches,
    ),
    "frgfm/imagenette": KnownDataset(
        "Imagenette, ten classes of ImageNet, from the Hub", 9469, f"ten classes of ImageNet; {IMAGENET_TERMS}"
    ),
    "ILSVRC/imagenet-1k": KnownDataset("ImageNet, from the Hub", 1281167, IMAGENET_TERMS),
}


def built_in(name: str) -> BuiltInDataset | None:
    """The built-in dataset of this name, or None."""
    known = DATASETS.get(name)
    return known if isinstance(known, BuiltInDataset) else None


def built_in_names() -> str:
    """The names of the built-in datasets, for messages."""
    return " or ".join(filter(built_in, DATASETS))
