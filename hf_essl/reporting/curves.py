"""The curves of a run: what its log shows over the optimizer steps."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_essl.reporting.figures import BLUE, GREY, RED, save_figure
from hf_essl.schedules import Curriculum

COLUMNS = 4
FEW = 25  # points up to which each has a marker, so that a single one is seen
Points = list[tuple[float, float]]


class Line(NamedTuple):
    """A curve of a panel: the key of its values in the log, its label, and its color."""

    key: str
    label: str
    color: str = RED


class Panel(NamedTuple):
    """One plot. Lines share an axis with a legend if `unit` names it; else a second one has its axis on the right."""

    lines: tuple[Line, ...]
    unit: str = ""
    from_zero: bool = False


PANELS = (
    Panel((Line("loss", "loss"),)),
    Panel((Line("eval_knn_accuracy", "kNN accuracy"), Line("eval_retrieval", "view retrieval", BLUE)), unit="%"),
    Panel((Line("eval_rankme", "RankMe (effective rank of the features)"),), from_zero=True),
    Panel((Line("embedding_std", "std of the embedding (0 = collapse)"),), from_zero=True),
    Panel((Line("learning_rate", "learning rate"), Line("momentum", "momentum", BLUE))),
    Panel((Line("resolution", "resolution (px)"), Line("magnitude", "augmentation magnitude", BLUE))),
    Panel((Line("tokens", "share of patch tokens"),), from_zero=True),
    Panel((Line("weight_decay", "weight decay"),), from_zero=True),
    Panel((Line("images_per_second", "images/s"),), from_zero=True),
    Panel((Line("petaflops", "petaFLOPs so far"),), from_zero=True),
)


def draw_curves(
    history: Sequence[dict],
    path: str | Path,
    title: str = "",
    stages: Sequence[tuple[int, int]] = (),
    start: str = "at random initialization",
) -> Path:
    """Draws what the log of a run contains over its steps; a panel without a value is left out.

    Dashed: the value before training. Dotted, vertical: the resolution changes.

    Args:
        history: `trainer.state.log_history`.
        stages: first step and resolution of each stage, and the end, see `stages_of`.
        start: what the dashed lines show, in words.
    """
    shown = [panel for panel in PANELS if any(_points(history, line.key) for line in panel.lines)]
    rows, columns = max(1, math.ceil(len(shown) / COLUMNS)), max(1, min(COLUMNS, len(shown)))
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    last = max((entry["step"] for entry in history if "step" in entry), default=1)
    for number, panel in enumerate(shown):
        axis = figure.add_subplot(rows, columns, number + 1)
        _draw(axis, panel, history, stages)
        _mark_starts(axis, panel, history, start)
        axis.set_xlabel("step")
        axis.set_xlim(-0.02 * last, 1.02 * last)
        axis.locator_params(axis="x", nbins=6, integer=True)
        for step, _ in stages[1:-1]:
            axis.axvline(step, color=GREY, linestyle=":", linewidth=0.9)
    if not shown:
        figure.text(0.5, 0.4, "the log of the run is empty", ha="center", color=GREY)
    return save_figure(figure, path)


def stages_of(curriculum: Curriculum, steps: int) -> list[tuple[int, int]]:
    """The first step and the resolution in pixels of each stage of a run of `steps` optimizer steps, and its end."""
    sizes = [curriculum.resolution(step / steps) for step in range(steps)]
    changes = [step for step, (before, after) in enumerate(pairwise(sizes), 1) if before != after]
    return [(step, sizes[step]) for step in [0, *changes]] + [(steps, sizes[-1])] if sizes else []


def _draw(axis: Axes, panel: Panel, history: Sequence[dict], stages: Sequence[tuple[int, int]]) -> None:
    drawn = [line for line in panel.lines if _points(history, line.key)]
    for number, line in enumerate(drawn):
        place = axis.twinx() if number and not panel.unit else axis
        draw: Callable[..., None] = _draw_stages if line.key == "resolution" and stages else _draw_line
        draw(place, line, stages if draw is _draw_stages else _points(history, line.key))
        if not panel.unit or len(drawn) == 1:
            place.set_ylabel(f"{line.label} ({panel.unit})" if panel.unit else line.label, color=line.color)
            place.tick_params(axis="y", colors=line.color)
    if panel.unit and len(drawn) > 1:
        axis.set_ylabel(panel.unit)
    if panel.from_zero:
        axis.set_ylim(0, 1.12 * max(value for line in drawn for _, value in _points(history, line.key)) or 1)


def _draw_line(axis: Axes, line: Line, points: Points) -> None:
    style: dict[str, Any] = {"color": line.color, "linewidth": 1.6, "label": line.label}
    if len(points) <= FEW:
        style |= {"marker": "o", "markersize": 4}
    axis.plot(*zip(*points, strict=True), **style)


def _mark_starts(axis: Axes, panel: Panel, history: Sequence[dict], start: str) -> None:
    """Dashed lines at the values of the evaluation before training, and a legend that names all lines."""
    shown = {line: points for line in panel.lines if (points := _points(history, line.key))}
    marked = {line: points[0][1] for line, points in shown.items() if points[0][0] == 0}
    for line, value in marked.items():
        axis.axhline(value, color=line.color, linestyle="--", linewidth=1, label=f"{start}: {value:.1f}")
    named = axis.lines if panel.unit and len(shown) > 1 else axis.lines[-1:]
    if marked or len(named) > 1:  # above the panel, where it covers no line
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98)}
        axis.legend(handles=named, frameon=False, fontsize=9, ncols=2, **place)


def _draw_stages(axis: Axes, line: Line, stages: Sequence[tuple[int, int]]) -> None:
    steps, sizes = zip(*stages, strict=True)
    axis.step(steps, sizes, where="post", color=line.color, linewidth=1.6)
    axis.set_yticks(sorted(set(sizes)))


def _points(history: Sequence[dict], key: str) -> Points:
    return [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
