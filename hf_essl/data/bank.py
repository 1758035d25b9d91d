"""A stream for training, and its labeled bank and evaluation images, decoded into memory."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

import datasets
import torch

from hf_essl.common import evenly_spaced
from hf_essl.config import DataArguments
from hf_essl.config.fields import default_of
from hf_essl.data.cache import CachedImages, decode_all
from hf_essl.data.columns import encoded_images
from hf_essl.data.decode import UnreadableLog
from hf_essl.data.depth import SAMPLES, check_depth
from hf_essl.data.inventory import notice
from hf_essl.data.sources import Splits
from hf_essl.data.stream import StreamedImages
from hf_essl.data.tables import encode

BANK_SIZE = 5_000  # first images of a stream that are kept as the neighbors of the kNN evaluation


def stream_images(rows: datasets.IterableDataset, args: DataArguments, name: str, seed: int = 0) -> StreamedImages:
    """The images of a stream for training. Raises ValueError for a column that is missing or contains no images."""
    rows = encoded_images(rows, args.image_column, name)
    stream = StreamedImages(rows, args.image_column, args.image_size, name, seed, args.white_level)
    if args.white_level is None:
        check_depth((stream.read_cell(row[args.image_column]) for row in islice(rows, SAMPLES)), name)
    return stream


def stream_bank(
    train: StreamedImages, splits: Splits, eval_split: str | None, args: DataArguments
) -> tuple[CachedImages | None, CachedImages | None]:
    """The evaluation images and the bank of a stream, or None without labels."""
    if eval_split is None and args.eval_holdout > 0:
        raise ValueError(
            f"eval_holdout is {args.eval_holdout} with streaming: true; a stream has no length, name an eval_split"
        )
    column = args.label_column
    columns: dict[str, Any] = train.stream.features or next(iter(train.stream), {})
    if column not in columns:
        unused = f", and the evaluation split {eval_split} is not used" if eval_split else ""
        if unused or column != default_of(DataArguments, "label_column"):
            notice(train.name, f"there is no column {column}: the stream has no labels{unused}; set label_column")
        return None, None
    parts = [_decode_rows(train.shuffled(0), min(args.max_train_samples or BANK_SIZE, BANK_SIZE), args, train)]
    if eval_split is not None:
        rows = encoded_images(splits.stream(eval_split), args.image_column, train.name)
        total = sum(1 for _ in rows.select_columns([column]))
        wanted = set(evenly_spaced(total, args.max_eval_samples))
        chosen = (row for index, row in enumerate(rows) if index in wanted)
        parts.append(_decode_rows(chosen, len(wanted), args, train))
    values = [label for *_, labels in parts for label in labels]
    found = encode(values, getattr(columns[column], "names", None), column, train.name)
    if found.labels is None:
        return None, None
    sizes = [len(labels) for *_, labels in parts]
    bank, *held_out = (
        CachedImages(images, labels, found.classes, train.name, aspects)
        for (images, aspects, _), labels in zip(parts, found.labels.split(sizes), strict=True)
    )
    return (held_out[0] if held_out else None), bank


def _decode_rows(
    rows: Iterable[dict[str, Any]], count: int, args: DataArguments, stream: StreamedImages
) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    def read(row: dict[str, Any]) -> tuple[Any, Any]:
        return stream.read_cell(row[args.image_column]), row.get(args.label_column)

    reads = (partial(read, row) for row in islice(rows, count))
    return decode_all(reads, count, args.image_size, "cpu", stream.name, UnreadableLog(None, args.max_unreadable))
