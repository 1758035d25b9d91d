"""What a backbone finds similar: query images, each next to its nearest neighbors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from hf_essl.common import evenly_spaced
from hf_essl.data.decode import decode
from hf_essl.reporting.figures import save_figure

SIDE = 128  # pixels per side of a drawn image


def draw_neighbors(
    images: Sequence[Any],
    features: Tensor,
    path: str | Path,
    *,
    queries: Sequence[int] | int = 4,
    neighbors: int = 5,
    title: str = "",
) -> Path:
    """Draws one row per query: the image, then its nearest neighbors under their cosine similarity.

    Args:
        images: N paths, PIL images or encoded bytes.
        features: N x D.
        path: of the PNG.
        queries: indices of the query images; or their number, evenly spaced.
        neighbors: columns next to the query.

    Raises ValueError if images and features differ in number, for too few images, and for a query that does not exist.
    """
    count = len(images)
    if count != len(features):
        raise ValueError(f"{count} images with {len(features)} features; pass one row of features per image")
    if not 1 <= neighbors < count:
        raise ValueError(f"neighbors is {neighbors} with {count} images; choose 1 to {count - 1}")
    queries = _indices(queries, count)
    similarity, nearest = nearest_neighbors(features, queries, neighbors)
    figure = Figure(figsize=(1.25 * (neighbors + 1), 1.4 * len(queries) + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(queries), neighbors + 1, squeeze=False)
    for axes, query, found, values in zip(grid, queries, nearest.tolist(), similarity.tolist(), strict=True):
        labels = ["query", *(f"{value:.2f}" for value in values)]
        for axis, index, label in zip(axes, [query, *found], labels, strict=True):
            pixels, shape = decode(images[index], SIDE)
            axis.imshow(pixels.permute(1, 2, 0).numpy(), aspect=1 / shape)  # undoes the squash
            axis.set_title(label, fontsize=8)
            axis.set_axis_off()
    return save_figure(figure, path)


def nearest_neighbors(features: Tensor, queries: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and indices, Q x count each, of the nearest rows of N x D to each query, except itself."""
    unit = F.normalize(features.detach().float(), dim=1)
    similarity = unit[list(queries)] @ unit.T  # Q x N
    similarity[torch.arange(len(queries)), list(queries)] = -torch.inf
    values, indices = similarity.topk(count, dim=1)
    return values, indices


def _indices(queries: Sequence[int] | int, count: int) -> list[int]:
    if isinstance(queries, int):
        if not 1 <= queries <= count:
            raise ValueError(f"queries is {queries} with {count} images; choose 1 to {count}, or pass their indices")
        return evenly_spaced(count, queries)
    for query in queries:
        if not 0 <= query < count:
            raise ValueError(f"queries contains {query}; the indices of {count} images are 0 to {count - 1}")
    return list(queries)
