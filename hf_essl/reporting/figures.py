"""The pictures of a run: its curves and its views."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.schedules import Curriculum
from hf_essl.views import Views

RED, BLUE, GREY = "#c0392b", "#2471a3", "#7f8c8d"
PALETTE = (RED, BLUE, "#229954", "#af7ac5", "#d68910", "#17a2b8", "#5d4037")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG beside its place and moves it there whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as scratch:
        figure.savefig(Path(scratch) / path.name, format="png", dpi=120)
        os.replace(Path(scratch) / path.name, path)
    return path


def png_path(path: str | Path) -> Path:
    """The path of a picture. Raises ValueError where it is no PNG."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"output is {path}; the picture is a PNG, name it {path.with_suffix('.png')}")
    return path


def draw_curves(history: Sequence[dict], path: str | Path, title: str = "") -> Path:
    """Six panels against the step: loss, kNN accuracy, feature std, LR with momentum, the curriculum, throughput.

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


def _line(axis, history: Sequence[dict], key: str, label: str, color: str, **style) -> None:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    if points and "drawstyle" in style:
        points.insert(0, (0, points[0][1]))  # a value holds for the steps before its entry
    axis.set_xlabel("step")
    axis.set_ylabel(label, color=color)
    axis.tick_params(axis="y", colors=color)
    if points:
        axis.plot(*zip(*points, strict=True), color=color, linewidth=1.6, **style)
    else:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes, color=GREY)


def draw_views(
    images: Tensor, args: ViewArguments, curriculum: Curriculum, path: str | Path, columns: int = 6, seed: int = 0
) -> Path:
    """A grid of augmented views at the start, the middle and the end of the curriculum, beside their originals.

    Args:
        images: uint8 N x 3 x H x W, a row each.
        columns: views of each image.
    """
    views = Views(args, mean=(0, 0, 0), std=(1, 1, 1), seed=seed)
    rows = len(images)
    figure = Figure(figsize=(1.35 * (columns + 1), 1.35 * rows * 3 + 1.2), layout="constrained")
    stages = {"start": 0.0, "middle": 0.5, "end": 1 - 1e-9}
    blocks: Any = figure.subfigures(3, 1)
    for block, (name, progress) in zip(blocks, stages.items(), strict=True):
        views.resolution, views.magnitude = curriculum.resolution(progress), curriculum.magnitude(progress)
        block.suptitle(f"{name}: {views.resolution} px, magnitude {views.magnitude:.2f}", fontsize=10)
        axes = block.subplots(rows, columns + 1, squeeze=False)
        _show(axes[:, 0], images.float() / 255)
        axes[0, 0].set_title("original", fontsize=8)
        for column in range(columns):
            _show(axes[:, column + 1], views.render(images, views.sample(images, column % 2)))
    return save_figure(figure, path)


def _show(axes, pictures: Tensor) -> None:
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), interpolation="nearest")
        axis.set_axis_off()
