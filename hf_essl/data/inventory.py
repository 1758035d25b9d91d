"""Lines that compare what a dataset contains with what trains: how many, why, the first name."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hf_essl.common import one_line

logger = logging.getLogger(__name__)


_collected: list[str] | None = None
_known: frozenset[str] = frozenset()


@contextmanager
def collected_notices() -> Iterator[list[str]]:
    """Collects the lines inside instead of logging them."""
    global _collected
    outer, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = outer


@contextmanager
def without_notices(known: Iterable[str]) -> Iterator[None]:
    """Leaves out the lines, without the name of the dataset, that the user has seen already."""
    global _known
    outer, _known = _known, frozenset(known)
    try:
        yield
    finally:
        _known = outer


def notice(name: str, text: str) -> None:
    """Logs one line about the dataset `name`, in the main process only."""
    text = one_line(text).encode("utf-8", "replace").decode()  # a file name may be no UTF-8
    if text in _known:
        return
    if _collected is not None:
        _collected.append(text)
    elif int(os.environ.get("RANK", 0)) == 0:  # set by torchrun and `accelerate launch`
        logger.warning("%s: %s", one_line(name), text)


def count_notice(name: str, items: Sequence[Any], noun: str, why: str) -> None:
    """The line for these items of a dataset, such as "photos: 2 files left out …, first a.txt"; none without items."""
    if items:
        notice(name, f"{len(items):,} {noun}{'s' * (len(items) != 1)} {why}, first {items[0]}")
