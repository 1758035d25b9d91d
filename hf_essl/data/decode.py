"""Any image to a uint8 tensor 3 x S x S: the short side resized to S, then the centre square."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

VERSION = 1
"""Raised with every change of the pixels that `decode` gives: caches on disk are then built anew."""


class UnreadableImage(Exception):
    """An image that cannot be decoded whole; the message says why in one line."""


def decode(image: Any, size: int) -> torch.Tensor:
    """The centre square of an image at `size` pixels, uint8 3 x size x size.

    The EXIF orientation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits. The resize is
    antialiased bicubic, for a JPEG after the decoder's own reduction; an image of `size` x `size` keeps its pixels.

    Args:
        image: encoded bytes, a path or fsspec URL, a {"bytes", "path"} row of `datasets`, a PIL image, or a uint8
            tensor 3 x H x W or 1 x H x W.
        size: side S in pixels.

    Raises:
        UnreadableImage: for a torn, empty or missing file, an unknown format or a decompression bomb.
        ValueError: for a tensor that is no uint8 image.
    """
    if isinstance(image, torch.Tensor):
        image = _pil_from_tensor(image)
    try:
        return _to_tensor(_square(_as_rgb(_upright(image, size)), size))
    except UnreadableImage:
        raise
    except Exception as error:  # on damaged bytes PIL's format plugins raise errors of many types
        raise UnreadableImage(_reason(error)) from error


def image_path(image: Any) -> str | None:
    """The path an image was read from, or None for bytes, tensors and PIL images without a file."""
    if isinstance(image, dict):
        return image.get("path")
    if isinstance(image, (str, Path)):
        return str(image)
    return getattr(image, "filename", None) or None


def _upright(image: Any, size: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    with Image.open(io.BytesIO(encoded_bytes(image))) as opened:
        opened.draft("RGB", (size, size))  # a JPEG is decoded at 1/2, 1/4 or 1/8 while both sides stay >= size
        return ImageOps.exif_transpose(opened)


def encoded_bytes(image: Any) -> bytes:
    """The bytes of an image that is not decoded. Raises UnreadableImage where there are none."""
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if image is None:
        raise UnreadableImage("neither bytes nor a path")
    if isinstance(image, str) and "://" in image:
        import fsspec

        with fsspec.open(image, "rb") as file:
            content = file.read()
    elif isinstance(image, (str, Path)):
        content = Path(image).read_bytes()
    else:
        content = bytes(image)
    if not content:
        raise UnreadableImage("empty file")
    return content


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _scaled(image, np.asarray(image), 65535)
    if image.mode == "F":
        return _scaled(image, np.asarray(image), 1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, values: np.ndarray, white: int) -> Image.Image:
    low, high = values.min(), values.max()
    if low < 0 or high > white:
        raise UnreadableImage(f"values {low:g} to {high:g} of mode {image.mode}, outside 0 to {white}")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # 3 x S x S


def _pil_from_tensor(image: torch.Tensor) -> Image.Image:
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"an image is a {image.dtype} tensor of shape {tuple(image.shape)}; give uint8 3 x H x W, or a PIL image"
        )
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing file"
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return " ".join(f"{error or type(error).__name__}".split())
