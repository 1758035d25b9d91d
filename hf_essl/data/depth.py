"""A warning for images of more than 8 bits that use a small part of their range and would train nearly black."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from hf_essl.data.content import encoded_bytes
from hf_essl.data.decode import WHITE_16_BITS
from hf_essl.data.inventory import notice

SAMPLES = 16  # images of a dataset that are looked at


def check_depth(images: Iterable[Any], name: str) -> None:
    """Logs one line if no value of the 16-bit images among these reaches half of the range.

    Args:
        images: PIL images, or what `encoded_bytes` accepts; those that cannot be read are skipped.
    """
    gray, color, looked_at = [], [], 0
    for image in images:
        looked_at += 1
        try:
            opened = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(encoded_bytes(image)))
            if opened.mode.startswith("I"):
                gray.append(np.asarray(opened))
            elif opened.mode in ("RGB", "RGBA") and ";16" in str(getattr(opened, "tile", "")):
                color.append(np.asarray(opened))
        except Exception:  # as in `decode`; it is reported when it trains
            continue
    if gray and 0 < (high := max(values.max() for values in gray)) <= WHITE_16_BITS // 2:
        low, fit = min(values.min() for values in gray), 2 ** int(high).bit_length() - 1
        notice(
            name,
            f"{len(gray)} of the {looked_at} images looked at have 16 bits and values {low} to {high} of "
            f"{WHITE_16_BITS}: they train dark; set white_level, such as {fit}",
        )
    if color and 0 < (high := max(values[..., :3].max() for values in color)) <= 127:
        notice(
            name,
            f"{len(color)} of the {looked_at} images looked at have 16 bits per color; Pillow keeps the upper 8, with "
            f"values up to {high} of 255: they train dark; convert them to 8 bits",
        )
