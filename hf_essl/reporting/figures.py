"""The pictures of a run: its curves and its views."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.schedules import Curriculum
from hf_essl.views.tiles import tile_views

RED, BLUE, GREY = "#c0392b", "#2471a3", "#7f8c8d"
PALETTE = (RED, BLUE, "#229954", "#af7ac5", "#d68910", "#17a2b8", "#5d4037")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG next to its destination, then moves it there, so that readers never see half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as scratch:
        figure.savefig(Path(scratch) / path.name, format="png", dpi=120)
        os.replace(Path(scratch) / path.name, path)
    return path


def png_path(path: str | Path) -> Path:
    """The path of a picture. Raises ValueError if it is not a PNG."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"output is {path}; the picture is a PNG, name it {path.with_suffix('.png')}")
    return path


def draw_curves(history: Sequence[dict], path: str | Path, title: str = "") -> Path:
    """Draws six panels over the steps: loss, kNN accuracy, embedding std, LR with momentum, curriculum, throughput.

    Args:
        history: `trainer.state.log_history`.
    """
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    axes = figure.subplots(2, 3)
    figure.suptitle(title)
    _line(axes[0, 0], history, "loss", "loss", RED)
    _line(axes[0, 1], history, "eval_knn_accuracy", "kNN accuracy (%)", RED, marker="o")
    _line(axes[0, 2], history, "embedding_std", "std of the embedding (0 = collapse)", RED)
    axes[0, 2].set_ylim(0, 1.15 * axes[0, 2].get_ylim()[1])
    _line(axes[1, 0], history, "learning_rate", "learning rate", RED)
    _line(axes[1, 0].twinx(), history, "momentum", "momentum", BLUE)
    _line(axes[1, 1], history, "resolution", "resolution (px)", RED, drawstyle="steps-pre")
    _line(axes[1, 1].twinx(), history, "magnitude", "augmentation magnitude", BLUE)
    _line(axes[1, 2], history, "images_per_second", "images/s", RED)
    _line(axes[1, 2].twinx(), history, "petaflops", "petaFLOPs so far", BLUE)
    return save_figure(figure, path)


def _line(axis: Axes, history: Sequence[dict], key: str, label: str, color: str, **style: Any) -> None:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    if points and "drawstyle" in style:
        points.insert(0, (0, points[0][1]))  # an entry describes the steps before it
    axis.set_xlabel("step")
    axis.set_ylabel(label, color=color)
    axis.tick_params(axis="y", colors=color)
    if points:
        axis.plot(*zip(*points, strict=True), color=color, linewidth=1.6, **style)
    else:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes, color=GREY)


def draw_views(
    images: Tensor,
    args: ViewArguments,
    curriculum: Curriculum,
    path: str | Path,
    columns: int = 6,
    seed: int = 0,
    aspect: Tensor | None = None,
) -> Path:
    """Draws augmented views at the start, the middle and the end of the curriculum, next to their originals.

    Args:
        images: uint8 N x 3 x S x S, one row each.
        columns: views of each image.
        aspect: N, width / height of the whole images; by default they are squares.
    """
    figure = Figure(figsize=(1.35 * (columns + 1), 1.35 * len(images) * 3 + 1.2), layout="constrained")
    stages = {"start": 0.0, "middle": 0.5, "end": 1.0}
    for axis, (name, progress) in zip(figure.subplots(3, 1), stages.items(), strict=True):
        resolution, magnitude = curriculum.resolution(progress), curriculum.magnitude(progress)
        axis.imshow(tile_views(images, args, resolution, magnitude, columns, seed, aspect))
        axis.set_title(f"{name}: {resolution} px, magnitude {magnitude:.2f}; originals on the left", fontsize=10)
        axis.set_axis_off()
    return save_figure(figure, path)
