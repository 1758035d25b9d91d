"""Any image to a canvas, uint8 3 x S x S: the whole image squashed to a square; and what cannot be read.

`decode` raises an error for an unreadable image; `read_image` returns a report of it instead, for `UnreadableLog`.
"""

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from hf_essl.common import one_line
from hf_essl.data.content import NotAnImage, UnreadableImage, encoded_bytes, pil_from_array

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 1_000  # unreadable images, after which a readable one is unlikely
LARGEST_JPEG = 2**16  # pixels on a side, the format's limit: no reduced decoding
MIN_SEEN = 1_000  # images of a stream, before which its share of unreadable ones means little
VERSION = 2  # increased with every change of what `decode` returns: caches on disk are then rebuilt
CANVAS = "whole image, squashed to a square; crops are taken in its own aspect ratio"  # for caches and cards
WHITE_16_BITS = 65535
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20  # Pillow refuses text above 1 MB, which some microscopes write


@dataclass(frozen=True)
class Scaled:
    """An image of more than 8 bits whose white is `white_level`, such as 4095 for 12 bits in a 16-bit file."""

    image: Any
    white_level: float


class Canvas(NamedTuple):
    """A whole image squashed to a square, so that a batch can stack images of any shape.

    A crop of the image is a box in fractions of its sides. It is the same box on the canvas, and `resample` undoes the
    squash when it renders the box.
    """

    pixels: torch.Tensor  # uint8 3 x S x S
    aspect: float  # width / height of the image


def decode(image: Any, size: int) -> Canvas:
    """The whole image, squashed to `size` x `size` pixels, and its aspect ratio.

    Applies the EXIF orientation, puts transparent images on white and scales 16-bit values to 8 bits. The resize is
    antialiased bicubic, for a JPEG after the decoder's own reduction; an image of `size` x `size` keeps its pixels.

    Args:
        image: encoded bytes, a path or fsspec URL, a {"bytes", "path"} row of `datasets`, a PIL image, or a uint8
            tensor 3 x H x W or 1 x H x W; see `encoded_bytes` and `pil_from_array` for more. `Scaled` sets its white.
        size: side S in pixels.

    Raises:
        UnreadableImage: for a truncated, empty or missing file, an unknown format or a decompression bomb.
        ValueError: for an object of another type, such as an array that is not a uint8 image.
    """
    white = None
    if isinstance(image, Scaled):
        image, white = image.image, image.white_level
    if isinstance(image, (torch.Tensor, np.ndarray)) and image.ndim != 1:
        image = pil_from_array(image)
    try:
        upright = _as_rgb(_upright(image, size), white)
        pixels = np.array(_squashed(upright, size))
        return Canvas(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), upright.width / upright.height)
    except (UnreadableImage, NotAnImage):
        raise
    except FileNotFoundError as error:
        raise UnreadableImage("missing file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("unknown image format") from error
    except Exception as error:  # PIL's format plugins raise errors of many types for damaged bytes
        raise UnreadableImage(one_line(error)) from error


def image_path(image: Any) -> str | None:
    """The path that an image was read from, or None for bytes, tensors and PIL images without a file."""
    if isinstance(image, Scaled):
        image = image.image
    if isinstance(image, dict):
        return image.get("path")
    if isinstance(image, (str, Path)):
        return str(image) if len(str(image)) < 1_000 else None  # longer text is an encoded image
    return getattr(image, "filename", None) or None


@dataclass(frozen=True)
class Unreadable:
    """One image that could not be decoded: its index (None in a stream), its path or name, and why."""

    index: int | None
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def read_image(read: Callable[[], tuple[Any, Any]], size: int, index: int | None, name: str):
    """Reads (image, label) and decodes the image.

    Returns (`Canvas`, label), or an `Unreadable` named by the image's path if it has one, else by `name`.
    """
    image = None
    try:
        image, label = read()
        return decode(image, size), label
    except (UnreadableImage, OSError, SyntaxError, Image.DecompressionBombError) as error:  # `read` may decode too
        return Unreadable(index, image_path(image) or name, one_line(error))


class UnreadableLog:
    """Counts the distinct unreadable images of a dataset and stops the run if their share is too large.

    Args:
        total: images of the dataset. None for a stream: the share is then of the images seen, from 1,000 images on.
        max_share: largest share of unreadable images, in [0, 1): the setting max_unreadable.
    """

    def __init__(self, total: int | None, max_share: float) -> None:
        self.total, self.max_share = total, max_share
        self.seen = 0
        self.found: dict[tuple[int | None, str], Unreadable] = {}

    def update(self, unreadable: Sequence[Unreadable], seen: int) -> None:
        """Counts the unreadable images of a batch, next to `seen` readable ones, and logs a warning once for each.

        Raises ValueError if more than `max_share` of the images are unreadable.
        """
        for one in unreadable:
            if (one.index, one.name) not in self.found:
                self.found[one.index, one.name] = one
                logger.warning("unreadable image %s", one_line(one))
        self.seen += seen + len(unreadable)
        if self.total is None and self.seen < MIN_SEEN:
            return
        total = self.seen if self.total is None else self.total
        if len(self.found) > self.max_share * total:
            raise ValueError(
                f"{len(self.found)} of {total} images are unreadable ({_first(list(self.found.values()))}), above "
                f"max_unreadable {self.max_share:g}; repair or remove them, or raise max_unreadable"
            )


def no_readable_image(name: str, unreadable: Sequence[Unreadable]) -> ValueError:
    """The error for a dataset without a readable image, or with `MAX_IN_A_ROW` unreadable ones in a row."""
    return ValueError(
        f"no image of {name} is readable among {len(unreadable)} in a row ({_first(unreadable)}); check the dataset"
    )


def stored_size(image: Any) -> tuple[int, int]:
    """Width and height as stored, without decoding the pixels; accepts what `open_image` does."""
    if isinstance(image, Image.Image):
        return image.size
    with Image.open(io.BytesIO(encoded_bytes(image))) as opened:
        return opened.size


def open_image(image: Any) -> Image.Image:
    """The whole upright image in its own size, RGB; accepts what `decode` does, except tensors."""
    return _as_rgb(_upright(image, LARGEST_JPEG), None)


def _upright(image: Any, size: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    with Image.open(io.BytesIO(encoded_bytes(image))) as opened:
        opened.draft("RGB", (size, size))  # decodes a JPEG at 1/2, 1/4 or 1/8 while both sides stay >= size
        return ImageOps.exif_transpose(opened)


def _as_rgb(image: Image.Image, white: float | None) -> Image.Image:
    if image.mode.startswith("I"):
        return _rescaled(image, white or WHITE_16_BITS)
    if image.mode == "F":
        return _rescaled(image, white or 1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _rescaled(image: Image.Image, white: float) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UnreadableImage(f"values that are not finite, of mode {image.mode}")
    low, high = values.min(), values.max()
    if low < 0 or high > white:
        raise UnreadableImage(f"values {low:g} to {high:g} of mode {image.mode}, outside 0 to {white:g} (white_level)")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def _squashed(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _first(unreadable: Sequence[Unreadable], count: int = 3) -> str:
    return ", ".join([str(one) for one in unreadable[:count]] + ["…"] * (len(unreadable) > count))
