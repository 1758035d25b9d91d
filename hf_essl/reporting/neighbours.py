"""What a backbone takes for alike: query images, each beside its nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from hf_essl.data.decode import decode
from hf_essl.reporting.figures import save_figure

SIDE = 128
"""Pixels of a drawn image."""


def draw_neighbours(
    images: Sequence[Any],
    features: Tensor,
    path: str | Path,
    *,
    queries: Sequence[int] | int = 4,
    neighbours: int = 5,
    title: str = "",
) -> Path:
    """Draws a row a query: the image, then those whose features are nearest by cosine similarity, which stands above.

    Args:
        images: N paths, PIL images or encoded bytes; those that are drawn are read.
        features: N x D, a row each.
        path: where the PNG is written.
        queries: which images to ask for; a number takes so many, evenly spaced.
        neighbours: columns beside the query.

    Raises:
        ValueError: where images and features differ in number, there are too few, or a query is none of them.
    """
    if len(images) != len(features):
        raise ValueError(f"{len(images)} images with {len(features)} features; give a row of features an image")
    if not 1 <= neighbours < len(images):
        raise ValueError(f"neighbours is {neighbours} of {len(images)} images; take 1 to {len(images) - 1}")
    rows = _rows(queries, len(images))
    similarity, nearest = nearest_neighbours(features, rows, neighbours)
    figure = Figure(figsize=(1.25 * (neighbours + 1), 1.4 * len(rows) + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(rows), neighbours + 1, squeeze=False)
    for axes, query, found, values in zip(grid, rows, nearest.tolist(), similarity.tolist(), strict=True):
        labels = ["query", *(f"{value:.2f}" for value in values)]
        for axis, index, label in zip(axes, [query, *found], labels, strict=True):
            axis.imshow(decode(images[index], SIDE).permute(1, 2, 0).numpy())
            axis.set_title(label, fontsize=8)
            axis.set_axis_off()
    return save_figure(figure, path)


def nearest_neighbours(features: Tensor, queries: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and positions, Q x count each, of the rows of N x D nearest to each query, itself aside."""
    unit = F.normalize(features.detach().float(), dim=1)
    similarity = unit[list(queries)] @ unit.T  # Q x N
    similarity[torch.arange(len(queries)), list(queries)] = -torch.inf
    return tuple(similarity.topk(count, dim=1))  # type: ignore[return-value]


def _rows(queries: Sequence[int] | int, count: int) -> list[int]:
    if isinstance(queries, int):
        if not 1 <= queries <= count:
            raise ValueError(f"queries is {queries} of {count} images; take 1 to {count}, or their positions")
        return [i * count // queries for i in range(queries)]
    for query in queries:
        if not 0 <= query < count:
            raise ValueError(f"queries holds {query}; positions of {count} images lie between 0 and {count - 1}")
    return list(queries)
