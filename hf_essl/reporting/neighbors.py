"""What a backbone finds similar: query images, each next to its nearest neighbors."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hf_essl.common import evenly_spaced
from hf_essl.config.fields import Count, checked
from hf_essl.data import ImageDataset
from hf_essl.data.decode import Scaled, decode
from hf_essl.evaluation.nearest import Neighbors, nearest_neighbors
from hf_essl.evaluation.search import Match
from hf_essl.reporting.figures import DARK, save_figure

SIDE = 128  # pixels per side of a drawn image
NAME_LENGTH = 21  # characters of a file name below an image


@checked
def draw_neighbors(
    images: Sequence[Any],
    features: Tensor,
    path: str | Path,
    *,
    queries: Sequence[int] | int = 4,
    neighbors: Count = 5,
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


def draw_before_and_after(images: ImageDataset, before: Neighbors | None, after: Neighbors, path: Path) -> Path:
    """Draws the images nearest to a few others, before and after training, with cosines and file names.

    Args:
        before: of the same queries as `after`; None if it is not known.
    """
    rows = [("after training", after)] if before is None else [("before training", before), ("after training", after)]
    count, columns = len(after.queries), len(after.nearest[0])
    figure = Figure(figsize=(1.8 + 1.4 * columns, 1.75 * count * len(rows) + 0.6))
    figure.set_layout_engine("constrained", h_pad=0.08)  # or the last line of names touches the edge
    figure.suptitle(f"Nearest of {after.images:,} images of {images.name}, with their cosine similarity", fontsize=11)
    ratios = [1.25, *[1.0] * columns]
    for part, place in zip(figure.subfigures(count, 1, squeeze=False).flat, range(count), strict=True):
        grid = part.add_gridspec(len(rows), columns + 1, width_ratios=ratios)
        _show(part.add_subplot(grid[:, 0]), images, after.queries[place], "query")
        for row, (when, found) in enumerate(rows):
            nearest = zip(found.nearest[place], found.cosines[place], strict=True)
            for column, (index, cosine) in enumerate(nearest):
                axis = part.add_subplot(grid[row, column + 1])
                _show(axis, images, index, f"{cosine:.3f}")
                if column == 0:
                    axis.set_ylabel(when, fontsize=9, color="black")
    return save_figure(figure, path)


def _show(axis: Axes, images: ImageDataset, index: int, title: str) -> None:
    sample: Any = images[index]
    _draw(
        axis, sample["image"], float(sample.get("aspect", 1.0)), title, _caption(images.file_name(index), images.name)
    )


def _draw(axis: Axes, pixels: Tensor, shape: float, title: str, caption: str) -> None:
    """A squashed image, uint8 3 x S x S, in its own width / height, with a title above and a caption below it."""
    axis.imshow(pixels.permute(1, 2, 0).cpu().numpy(), aspect=1 / shape)
    axis.set_title(title, fontsize=9, pad=3)
    axis.set_xlabel(caption, fontsize=7, color=DARK, labelpad=2)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _caption(file_name: str | None, dataset: str = "") -> str:
    """The name of a file without its extension, below that of its folder unless the folder is the dataset."""
    path = PurePath(file_name or "")
    folder = path.parent.name
    return "\n".join(shortened(name) for name in (folder if folder != dataset else "", path.stem) if name)


def shortened(name: str, length: int = NAME_LENGTH) -> str:
    """A name of at most `length` characters; of a longer one, the start and the end around an ellipsis."""
    if len(name) <= length:
        return name
    end = length // 2
    return f"{name[: length - end - 1]}…{name[-end:]}"


def _indices(queries: Sequence[int] | int, count: int) -> list[int]:
    if isinstance(queries, int):
        if not 1 <= queries <= count:
            raise ValueError(f"queries is {queries} with {count} images; choose 1 to {count}, or pass their indices")
        return evenly_spaced(count, queries)
    for query in queries:
        if not 0 <= query < count:
            raise ValueError(f"queries contains {query}; the indices of {count} images are 0 to {count - 1}")
    return list(queries)


def draw_matches(
    folder: Path, paths: Sequence[str], matches: Sequence[Match], path: Path, white_level: float | None = None
) -> Path:
    """Draws one row per query: the image, then its neighbors under their cosines and above their names.

    Args:
        folder: of the images.
        paths: of all images below the folder.
        white_level: see `DataArguments`.

    Raises ValueError for an image that is not in the folder.
    """
    columns = 1 + max(len(match.neighbors) for match in matches)
    figure = Figure(figsize=(1.5 * columns, 2 * len(matches) + 0.3), layout="constrained")
    grid = figure.subplots(len(matches), columns, squeeze=False)
    for axes, match in zip(grid, matches, strict=True):
        titles = ["query", *(f"{cosine:.3f}" for cosine in match.cosines)]
        for axis, row, title in zip(axes, [match.query, *match.neighbors], titles, strict=True):
            if not (folder / paths[row]).is_file():
                raise ValueError(f"images {folder} has no {paths[row]}; give the folder that was embedded")
            image: Any = str(folder / paths[row])
            pixels, shape = decode(image if white_level is None else Scaled(image, white_level), SIDE)
            _draw(axis, pixels, shape, title, _caption(paths[row]))
    return save_figure(figure, path)
