"""Data sets that the package knows by name. To add one, write its loader in a file and add a line to `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_essl.data.cache import CachedImages
from hf_essl.data.photo_patches import SPLITS, TERMS, photo_patches

IMAGENET_TERMS = "ImageNet's terms of access allow non-commercial research and education only"


@dataclass(frozen=True)
class BuiltInDataset:
    """What help, cost and card say of a data set, and how to load it if it needs no download.

    Args:
        description: one line for the help.
        train_images: training images, known without loading them.
        terms: of its images, one sentence without its full stop.
        caveat: what an accuracy on it does not show; empty if there is nothing to say.
        splits: names of the splits that `load` takes, the training split first.
        load: (split, side in pixels, device) to decoded images; None for a data set of the Hub.
    """

    description: str
    train_images: int
    terms: str
    caveat: str = ""
    splits: tuple[str, ...] = ()
    load: Callable[[str, int, torch.device | str], CachedImages] | None = None


DATASETS: dict[str, BuiltInDataset] = {
    "photo-patches": BuiltInDataset(
        "labeled patches of scikit-image's 16 photographs, without a download",
        train_images=4096,
        terms=TERMS,
        caveat=(
            "Each class of photo-patches is one photograph, and both splits show parts of the same 16 photographs: "
            "its accuracies show whether training works and are not a benchmark."
        ),
        splits=SPLITS,
        load=photo_patches,
    ),
    "frgfm/imagenette": BuiltInDataset(
        "Imagenette, ten classes of ImageNet, from the Hub",
        train_images=9469,
        terms=f"ten classes of ImageNet; {IMAGENET_TERMS}",
    ),
    "ILSVRC/imagenet-1k": BuiltInDataset("ImageNet, from the Hub", train_images=1281167, terms=IMAGENET_TERMS),
}
