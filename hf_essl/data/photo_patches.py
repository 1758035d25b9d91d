"""photo-patches: a small labeled image set without a download, cut from the photographs of scikit-image's wheel.

One class per photograph. Training and evaluation windows lie in disjoint bands of each photograph, so the pixels of
the evaluation patches are never trained on.
"""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from hf_essl.data.cache import CachedImages, check_memory, usable_cores

NAME = "photo-patches"
TERMS = (
    "16 photographs of scikit-image's wheel. Its documentation calls eight of them CC0 (brick, camera, cell, chelsea, "
    "coffee, grass, gravel, retina), three public domain (astronaut, hubble_deep_field, rocket), two of no known "
    "copyright restrictions (coins, ihc), and says nothing about three (moon, motorcycle_left, page)"
)
CAVEAT = (
    "Each class of photo-patches is one photograph, and both splits show parts of the same 16 photographs: "
    "its accuracies show whether training works and are not a benchmark."
)
PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip
CLASSES = [Path(photo).stem.replace("_", " ") for photo in PHOTOS]
PER_CLASS = {"train": 256, "validation": 64}
SPLITS = tuple(PER_CLASS)
SMALLEST, LARGEST = 72, 144  # sides of the windows, in pixels of the photograph: 0.75 to 1.5 x 96
BAND = (3 / 8, 6 / 8)  # the evaluation band, as a share of the side that it divides
WIDE = 400  # pixels from which the shorter side is divided; a smaller photograph is divided along the longer one
PLAIN = 8.0  # standard deviation of the gray values, of 255, below which a window shows nothing
CANDIDATES = 4  # windows sampled for each one kept


class Box(NamedTuple):
    """A window, in pixels of its photograph; `right` and `bottom` are just outside."""

    left: int
    top: int
    right: int
    bottom: int


def photo_patches(split: str, image_size: int, device: torch.device | str = "cpu") -> CachedImages:
    """The patches of a split: 256 (train) or 64 (validation) of each of 16 photographs, the same at every call.

    Training patches cycle through the classes, so that the first N show all of them. Validation patches are sorted by
    class, so that N evenly spaced ones do.

    Raises:
        FileNotFoundError: if scikit-image or one of its photographs is missing.
        ValueError: if the patches do not fit the free memory.
    """
    count = PER_CLASS[split]
    jobs = [(photo, box) for photo in PHOTOS for box in boxes(photo, split)]
    labels = torch.arange(len(PHOTOS)).repeat_interleave(count)
    if split == "train":
        order = torch.arange(len(jobs)).view(len(PHOTOS), count).T.flatten()
        jobs, labels = [jobs[index] for index in order.tolist()], labels[order]
    check_memory(len(jobs), image_size, device)
    images = torch.empty(len(jobs), 3, image_size, image_size, dtype=torch.uint8)

    def cut(index: int) -> None:
        photo, box = jobs[index]
        patch = _photo(photo).crop(box).resize((image_size, image_size), Image.Resampling.BICUBIC)
        images[index] = torch.from_numpy(np.array(patch.convert("RGB"))).permute(2, 0, 1)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(cut, range(len(jobs))))
    return CachedImages(images.to(device), labels, CLASSES, NAME)


def boxes(photo: str, split: str) -> list[Box]:
    """The windows of a split in one photograph: the first ones with content, then those with the most contrast."""
    rng = np.random.default_rng([PHOTOS.index(photo), SPLITS.index(split)])
    count = PER_CLASS[split]
    windows = list(islice(_windows(rng, regions(photo, split)), CANDIDATES * count))
    contrast = _contrast(photo, np.array(windows))
    order = np.argsort(-np.minimum(contrast, PLAIN), kind="stable")[:count]
    return [windows[index] for index in order]


def regions(photo: str, split: str) -> list[Box]:
    """The parts of a photograph that a split may show: the band across it, or the parts on either side."""
    width, height = _photo(photo).size
    side = min(width, height) if min(width, height) >= WIDE else max(width, height)
    start, end = round(BAND[0] * side), round(BAND[1] * side)
    spans = [(start, end)] if split == "validation" else [(0, start), (end, side)]
    if side == height:
        return [Box(0, low, width, high) for low, high in spans]
    return [Box(low, 0, high, height) for low, high in spans]


def _windows(rng: np.random.Generator, parts: list[Box]) -> Iterator[Box]:
    areas = np.array([(part.right - part.left) * (part.bottom - part.top) for part in parts], dtype=float)
    bounds = np.cumsum(areas / areas.sum())[:-1]
    while True:
        part = parts[int(np.searchsorted(bounds, rng.random(), side="right"))]
        width, height = part.right - part.left, part.bottom - part.top
        side = int(rng.integers(SMALLEST, min(LARGEST, width, height) + 1))
        left = part.left + int(rng.integers(0, width - side + 1))
        top = part.top + int(rng.integers(0, height - side + 1))
        yield Box(left, top, left + side, top + side)


def _contrast(photo: str, windows: np.ndarray) -> np.ndarray:
    """Standard deviation of the gray values in N windows, N x 4, from sums over the photograph (integral images)."""
    gray = np.pad(np.asarray(_photo(photo).convert("L"), dtype=np.float64), ((1, 0), (1, 0)))
    left, top, right, bottom = windows.T
    means = []
    for values in (gray, gray**2):
        sums = values.cumsum(0).cumsum(1)
        total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        means.append(total / ((right - left) * (bottom - top)))
    return np.sqrt(np.maximum(means[1] - means[0] ** 2, 0))


@cache
def _photo(photo: str) -> Image.Image:
    """A photograph, at most 1,000 pixels wide or high. Read from the wheel: `skimage.data` itself may download."""
    package = importlib.util.find_spec("skimage")
    path = Path(getattr(package, "origin", None) or "skimage").parent / "data" / photo
    if not path.is_file():
        raise FileNotFoundError(
            f"photo-patches needs {photo} of scikit-image, missing in {path.parent}; reinstall scikit-image from its "
            f"wheel, or choose another dataset"
        )
    image = Image.open(path)  # RGB or gray
    image.thumbnail((1_000, 1_000))
    image.load()  # now: threads must not share an open file
    return image
