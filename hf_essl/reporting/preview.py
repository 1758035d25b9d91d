"""A recipe's schedules in one picture, before anything is trained: the paper's Fig. 2 and Fig. 3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_essl.data import load_images, sample_images
from hf_essl.recipe import Recipe
from hf_essl.reporting.figures import BLUE, GREY, RED, draw_views, png_path, save_figure
from hf_essl.schedules import F1CLR, Cosine, Curriculum, Curve, curve_from_args, warmup_fraction

Schedule = Literal["constant", "progressive", "super_progressive"]

POINTS = 1001
LENGTHS = (1 / 3, 2 / 3, 1, 4 / 3, 5 / 3)  # of the recipe's own: 160 to 800 epochs where it has 480 (Table 7)
PAPER_WARMUP = 80 / 480  # drawn where a recipe has no warm-up


@dataclass(frozen=True)
class Series:
    """One line of a panel: `y` against `x`, in epochs. `own` marks what the recipe does."""

    label: str
    x: np.ndarray
    y: np.ndarray
    own: bool = False


@dataclass(frozen=True)
class Panel:
    """One of the six pictures; `steps` where its lines jump."""

    title: str
    ylabel: str
    series: tuple[Series, ...]
    steps: bool = False


def preview(recipe: Recipe, path: str | Path) -> Path:
    """Writes the picture of a recipe's schedules to `path`, a PNG, whole or not at all.

    Raises ValueError for another suffix.
    """
    return save_figure(draw_preview(recipe), png_path(path))


def preview_views(recipe: Recipe, path: str | Path) -> Path:
    """Writes views of three of the recipe's training images to `path`, a PNG: start, middle and end of the curriculum.

    Raises ValueError for another suffix, and for images that cannot be had.
    """
    path = png_path(path)
    train = load_images(replace(recipe.data, cache="none"), "cpu").train
    curriculum = Curriculum.from_args(recipe.views, recipe.training)
    return draw_views(sample_images(train), recipe.views, curriculum, path)


def preview_panels(recipe: Recipe) -> tuple[Panel, ...]:
    """The data of the six panels, in reading order: Fig. 2 (LR, momentum, lengths), Fig. 3 (magnitude, sizes)."""
    return (
        _lr_panel(recipe),
        _momentum_panel(recipe),
        _lengths_panel(recipe),
        _magnitude_panel(recipe),
        _resolution_panel(recipe, "super_progressive", "Super Progressive Learning"),
        _resolution_panel(recipe, "progressive", "Progressive Learning"),
    )


def draw_preview(recipe: Recipe) -> Figure:
    """The six panels as a matplotlib figure."""
    figure = Figure(figsize=(13, 7))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    figure.suptitle(_headline(recipe), fontsize=13)
    for axis, panel in zip(figure.subplots(2, 3).flat, preview_panels(recipe), strict=True):
        _draw(axis, panel)
    return figure


def _lr_panel(recipe: Recipe) -> Panel:
    training = recipe.training
    x, curve = _epochs(recipe), _curve(recipe)
    cosine = Series("cosine", x, training.learning_rate * _lr(Cosine(training.num_train_epochs), x))
    own = Series(training.lr_schedule, x, training.learning_rate * _lr(curve, x), own=True)
    return Panel("Learning rate", "learning rate", (own,) if own.label == "cosine" else (cosine, own))


def _momentum_panel(recipe: Recipe) -> Panel:
    training = recipe.training
    x, curve = _epochs(recipe), _curve(recipe)
    span = training.max_momentum - training.min_momentum
    rest = training.momentum if training.optim == "sgd" else training.adam_beta1
    positions = [curve.momentum(t) for t in x]
    y = np.array([rest if p is None else training.min_momentum + span * p for p in positions])
    cosine = Series("cosine", x, np.full_like(x, rest))
    own = Series(training.lr_schedule, x, y, own=True)
    return Panel("Momentum", "momentum", (own,) if own.label == "cosine" else (cosine, own))


def _lengths_panel(recipe: Recipe) -> Panel:
    training = recipe.training
    warmup = _warmup_fraction(recipe) * training.num_train_epochs
    series = []
    for length in (share * training.num_train_epochs for share in LENGTHS):
        if length > warmup:
            x = np.linspace(0, length, POINTS)
            own = training.lr_schedule == "f1_clr" and length == training.num_train_epochs
            y = training.learning_rate * _lr(F1CLR(length, warmup), x)
            series.append(Series(f"{length:.4g} epochs", x, y, own))
    return Panel(f"F1-CLR by length, warm-up {warmup:.4g} epochs", "learning rate", tuple(series))


def _magnitude_panel(recipe: Recipe) -> Panel:
    x, magnitude = _epochs(recipe), Curriculum.from_args(recipe.views, recipe.training).magnitude
    y = np.array([magnitude(t / x[-1]) for t in x])
    return Panel("Augmentation magnitude", "magnitude", (Series("linear", x, y, own=True),))


def _resolution_panel(recipe: Recipe, name: Schedule, title: str) -> Panel:
    """The resolution under schedule `name`, blue where the recipe takes another, and the recipe's where constant."""
    x, views = _epochs(recipe), recipe.views
    names: list[Schedule] = ["constant"] if views.resolution_schedule == "constant" else []
    names += [name] if views.min_resolution is not None else []
    series = []
    for shown in names:
        schedule = Curriculum.with_warmup(
            replace(views, resolution_schedule=shown), _warmup_fraction(recipe)
        ).resolution
        y = np.array([schedule(t / x[-1]) for t in x])
        series.append(Series(shown, x, y, own=shown == views.resolution_schedule))
    return Panel(title, "resolution (px)", tuple(series), steps=True)


def _epochs(recipe: Recipe) -> np.ndarray:
    return np.linspace(0, recipe.training.num_train_epochs, POINTS)


def _curve(recipe: Recipe) -> Curve:
    """The recipe's curve, with its time in epochs."""
    return curve_from_args(recipe.training, recipe.training.num_train_epochs)


def _lr(curve: Curve, x: np.ndarray) -> np.ndarray:
    return np.array([curve.lr(t) for t in x])


def _warmup_fraction(recipe: Recipe) -> float:
    return warmup_fraction(recipe.training) or PAPER_WARMUP


def _headline(recipe: Recipe) -> str:
    training = recipe.training
    parts = [Path(recipe.source).name, recipe.model.method, recipe.model.backbone]
    parts.append(f"{training.lr_schedule} over {training.num_train_epochs:.4g} epochs")
    if training.max_steps > 0:
        parts.append(f"shortened to {training.max_steps} steps")
    return "  ·  ".join([*(part for part in parts if part), "red: this recipe"])


def _draw(axis: Axes, panel: Panel) -> None:
    shades = iter(np.linspace(0.75, 0.25, len(panel.series)))
    many = len(panel.series) > 2
    for series in panel.series:
        shade = str(next(shades))
        color = RED if series.own else shade if many else BLUE
        width, style = 2.0 if series.own else 1.5, "steps-post" if panel.steps else "default"
        axis.plot(series.x, series.y, color=color, linewidth=width, drawstyle=style, label=series.label)
    axis.set_title(panel.title, fontsize=11)
    axis.set_xlabel("epoch")
    axis.set_ylabel(panel.ylabel)
    axis.set_xlim(0, max(series.x[-1] for series in panel.series))
    axis.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.steps:
        axis.set_yticks(np.unique(np.concatenate([series.y for series in panel.series])))
    axis.legend(fontsize=9, frameon=False, loc="lower right" if panel.steps else "best")
