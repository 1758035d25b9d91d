"""Unreadable images: what is reported of one, and the count that stops a run when there are too many."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hf_essl.data.decode import UnreadableImage, decode, image_path

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 1_000  # unreadable images after which no readable one is expected any more
JUDGED_FROM = 1_000  # images of a stream seen before its share of unreadable ones means anything


@dataclass(frozen=True)
class Unreadable:
    """One image that could not be decoded: its index (None in a stream), its path or name, and why."""

    index: int | None
    name: str
    reason: str


def read_image(read: Callable[[], tuple[Any, Any]], size: int, index: int | None, name: str):
    """Reads (image, label) and decodes the image.

    Returns: (uint8 3 x size x size, label), or an `Unreadable` named by the image's path, else by `name`.
    """
    image = None
    try:
        image, label = read()
        return decode(image, size), label
    except (UnreadableImage, OSError, SyntaxError, Image.DecompressionBombError) as error:  # a dataset may decode too
        return Unreadable(index, image_path(image) or name, " ".join(str(error).split()))


class UnreadableLog:
    """Counts the distinct unreadable images of a dataset and stops the run past a share of it.

    Args:
        total: images of the dataset; None for a stream, whose share is of the images seen, judged after 1,000.
        max_share: largest share of unreadable images, in [0, 1): the setting max_unreadable.
    """

    def __init__(self, total: int | None, max_share: float) -> None:
        self.total, self.max_share = total, max_share
        self.seen = 0
        self.found: dict[tuple[int | None, str], Unreadable] = {}

    def update(self, unreadable: list[Unreadable], seen: int | None = None) -> None:
        """Counts the unreadable images of a batch and logs each new one by name, once, as a warning.

        Args:
            unreadable: those of the batch.
            seen: readable images of the batch; needed for a stream alone.

        Raises:
            ValueError: when more than `max_share` of the images are unreadable.
        """
        if self.total is None and seen is None:
            raise ValueError("UnreadableLog.update takes seen=, the images of the batch, where the total is not known")
        for one in unreadable:
            if (one.index, one.name) not in self.found:
                self.found[one.index, one.name] = one
                logger.warning("unreadable image %s: %s", one.name, one.reason)
        self.seen += (seen or 0) + len(unreadable)
        self._judge()

    def _judge(self) -> None:
        if self.total is None and self.seen < JUDGED_FROM:
            return
        total = self.seen if self.total is None else self.total
        if len(self.found) > self.max_share * total:
            raise ValueError(
                f"{len(self.found)} of {total} images are unreadable ({first_names(list(self.found.values()))}), "
                f"above max_unreadable {self.max_share:g}; repair or remove them, or raise max_unreadable"
            )


def first_names(unreadable: list[Unreadable], count: int = 3) -> str:
    """The first few names, with the reason of each, as one line."""
    names = [f"{one.name}: {one.reason}" for one in unreadable[:count]]
    return ", ".join(names + ["…"] * (len(unreadable) > count))


def require_readable(unreadable: list[Unreadable]) -> None:
    """Raises ValueError when the last 1,000 images were all unreadable: the dataset, not an image, is at fault."""
    if len(unreadable) >= MOST_IN_A_ROW:
        raise ValueError(
            f"{len(unreadable)} images in a row are unreadable ({first_names(unreadable)}); check the dataset"
        )
