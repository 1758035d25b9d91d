"""The encoded bytes of an image, whatever carries them: bytes, a file, a URL, base64 text or a row of `datasets`."""

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SHORTEST_BASE64 = 100  # characters: shorter text is a path


class UnreadableImage(Exception):
    """An image that cannot be decoded completely; the message says why in one line."""


class NotAnImage(ValueError):
    """An object of a type that is no image: an error of the dataset, not of one file."""


def encoded_bytes(image: Any) -> bytes:
    """The bytes of bytes, a uint8 array of one dimension, a path, an fsspec URL, base64 text, or a row of `datasets`.

    Raises UnreadableImage for None and for an empty file, OSError for a file that cannot be read, and NotAnImage for
    another type.
    """
    if isinstance(image, dict) and image.keys() & {"bytes", "path"}:
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if image is None:
        raise UnreadableImage("neither bytes nor a path")
    if isinstance(image, (str, Path)):
        content = _from_text(str(image))
    elif isinstance(image, (bytes, bytearray, memoryview)):
        content = bytes(image)
    elif isinstance(image, (np.ndarray, torch.Tensor)) and "uint8" in str(image.dtype):
        content = np.asarray(image).tobytes()
    else:
        raise NotAnImage(f"an image is a {type(image).__name__}; pass a PIL image, bytes, a path or a uint8 array")
    if not content:
        raise UnreadableImage("empty file")
    return content


def pil_from_array(image: np.ndarray | torch.Tensor) -> Image.Image:
    """A PIL image of a uint8 array, H x W or H x W x C with 1, 3 or 4 channels, or tensor, 1 or 3 x H x W.

    Raises NotAnImage for another type or shape.
    """
    if isinstance(image, torch.Tensor):
        kind, wanted = "tensor", "uint8 3 x H x W"
        is_image = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] in (1, 3)
    else:
        kind, wanted = "array", "uint8 H x W, H x W x 3 or H x W x 4"
        is_image = image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4)))
    if not is_image:
        raise NotAnImage(
            f"an image is a {image.dtype} {kind} of shape {tuple(image.shape)}; pass {wanted}, or a PIL image"
        )
    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, torch.Tensor) else image
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _from_text(text: str) -> bytes:
    if text.startswith("data:"):
        return base64.b64decode(text.partition(",")[2])
    if "://" in text:
        import fsspec

        with fsspec.open(text, "rb") as file:
            return file.read()
    try:
        return Path(text).read_bytes()
    except OSError:
        if len(text) < SHORTEST_BASE64:
            raise
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            pass
        raise
