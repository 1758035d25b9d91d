"""Lines that compare what a dataset contains with what trains: how many, why, the first name."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from hf_essl.common import one_line

logger = logging.getLogger(__name__)


def notice(name: str, text: str) -> None:
    """Logs one line about the dataset `name`, in the main process only."""
    if int(os.environ.get("RANK", 0)) == 0:  # set by torchrun and `accelerate launch`
        line = one_line(f"{name}: {text}")
        logger.warning("%s", line.encode("utf-8", "replace").decode())  # a file name may be no UTF-8


def count_notice(name: str, items: Sequence[Any], noun: str, why: str) -> None:
    """The line for these items of a dataset, such as "photos: 2 files left out …, first a.txt"; none without items."""
    if items:
        notice(name, f"{len(items):,} {noun}{'s' * (len(items) != 1)} {why}, first {items[0]}")
