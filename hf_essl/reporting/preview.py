"""A recipe's schedules in one picture, without training: the paper's Fig. 2 and Fig. 3."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_essl.data import load_images, sample_images
from hf_essl.methods.tokens import patch_count
from hf_essl.recipe import Recipe
from hf_essl.reporting.figures import BLUE, GREY, RED, draw_views, png_path, save_figure
from hf_essl.schedules import (
    CURVES,
    F1CLR,
    Cosine,
    Curriculum,
    Curve,
    WeightDecay,
    curve_from_args,
    warmup_fraction,
)

POINTS = 1001
LENGTHS = (1 / 3, 2 / 3, 1, 4 / 3, 5 / 3)  # of the recipe's own: 160 to 800 epochs for the paper's 480 (Table 7)
PAPER_WARMUP = 80 / 480  # for recipes without a warm-up


class Series(NamedTuple):
    """One line of a panel: `y` over `x` in epochs. `own` marks the recipe's own schedule."""

    label: str
    x: np.ndarray
    y: np.ndarray
    own: bool = False


class Panel(NamedTuple):
    """One of the plots; `steps` if its lines are step functions."""

    title: str
    ylabel: str
    series: tuple[Series, ...]
    steps: bool = False


def preview(recipe: Recipe, path: str | Path) -> Path:
    """Writes the picture of a recipe's schedules to `path`. Raises ValueError if it is not a PNG."""
    return save_figure(draw_preview(recipe), png_path(path))


def preview_views(recipe: Recipe, path: str | Path) -> Path:
    """Writes views of three training images to `path`: at the start, the middle and the end of the curriculum.

    Raises ValueError for a path that is not a PNG, and for images that cannot be loaded.
    """
    path = png_path(path)
    train = load_images(replace(recipe.data, cache="none"), "cpu").train
    images, aspect = sample_images(train)
    curriculum = Curriculum.from_args(recipe.views, recipe.training)
    patches = partial(patch_count, recipe.meta_network()) if recipe.views.min_tokens < 1 else None
    return draw_views(images, recipe.views, curriculum, path, aspect=aspect, patches=patches)


def preview_panels(recipe: Recipe) -> tuple[Panel, ...]:
    """The data of the panels: Fig. 2 (learning rate, momentum, lengths), then Fig. 3 (magnitude, resolutions).

    A curriculum of patch tokens has one more, and so has a weight decay that moves.
    """
    curriculum, epochs = Curriculum.from_args(recipe.views, recipe.training), recipe.training.num_train_epochs
    linear = _by_progress("linear", curriculum.magnitude, epochs, own=True)
    further = []
    if recipe.views.min_tokens < 1:
        tokens = _by_progress("share of all", curriculum.tokens, epochs, own=True)
        further.append(Panel("Patch tokens", "share", (tokens,), steps=True))
    if (end := recipe.training.weight_decay_end) is not None:
        decay = WeightDecay(recipe.training.weight_decay, end, epochs)
        further.append(Panel("Weight decay", "weight decay", (_series("cosine", decay.at, epochs, own=True),)))
    return (
        *_curve_panels(recipe),
        _lengths_panel(recipe),
        Panel("Augmentation magnitude", "magnitude", (linear,)),
        _resolution_panel(recipe, "super_progressive", "Super Progressive Learning"),
        _resolution_panel(recipe, "progressive", "Progressive Learning"),
        *further,
    )


def draw_preview(recipe: Recipe) -> Figure:
    """The panels as a matplotlib figure."""
    panels = preview_panels(recipe)
    columns = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(13 * columns / 3, 7))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    figure.suptitle(_headline(recipe), fontsize=13)
    for number, panel in enumerate(panels, 1):
        _draw(figure.add_subplot(2, columns, number), panel)
    return figure


def _series(label: str, function: Callable[[float], float], length: float, own: bool, scale: float = 1.0) -> Series:
    x = np.linspace(0, length, POINTS)
    return Series(label, x, scale * np.array([function(t) for t in x]), own)


def _by_progress(label: str, function: Callable[[float], float], length: float, own: bool) -> Series:
    return _series(label, lambda t: function(t / length), length, own)


def _curve_panels(recipe: Recipe) -> tuple[Panel, Panel]:
    """Learning rate and momentum over the epochs, next to cosine annealing."""
    training = recipe.training
    name, peak, epochs = training.lr_schedule, training.learning_rate, training.num_train_epochs
    fixed = training.constant_momentum

    def momentum(curve: Curve, t: float) -> float:
        position, span = curve.momentum(t), training.max_momentum - training.min_momentum
        return fixed if position is None else training.min_momentum + span * position

    curves = {"cosine": Cosine(epochs), name: curve_from_args(training, epochs)}
    rates = [_series(label, curve.lr, epochs, label == name, peak) for label, curve in curves.items()]
    momenta = [_series(label, partial(momentum, curve), epochs, label == name) for label, curve in curves.items()]
    return Panel("Learning rate", "learning rate", tuple(rates)), Panel("Momentum", "momentum", tuple(momenta))


def _lengths_panel(recipe: Recipe) -> Panel:
    training = recipe.training
    warmup = _warmup_fraction(recipe) * training.num_train_epochs
    series = []
    for length in (share * training.num_train_epochs for share in LENGTHS):
        if length > warmup:
            own = CURVES[training.lr_schedule] is F1CLR and length == training.num_train_epochs
            curve = F1CLR(length, warmup)
            series.append(_series(f"{length:.4g} epochs", curve.lr, length, own, training.learning_rate))
    return Panel(f"{F1CLR.title} by length, warm-up {warmup:.4g} epochs", "learning rate", tuple(series))


def _resolution_panel(recipe: Recipe, name: str, title: str) -> Panel:
    """The resolution under schedule `name`, and the recipe's own if that is constant."""
    views = recipe.views
    names = ["constant"] if views.resolution_schedule == "constant" else []
    names += [name] if views.min_resolution is not None else []
    series = []
    for shown in names:
        changed: Any = {"resolution_schedule": shown}
        resolution = Curriculum.with_warmup(replace(views, **changed), _warmup_fraction(recipe)).resolution
        own = shown == views.resolution_schedule
        series.append(_by_progress(shown, resolution, recipe.training.num_train_epochs, own))
        if own and views.local_views:
            beside = series[-1]
            sizes = np.array([views.local_size(int(side)) for side in beside.y])
            series.append(Series(f"{views.local_views} local views", beside.x, sizes))
    return Panel(title, "resolution (px)", tuple(series), steps=True)


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
    shades, style = np.linspace(0.75, 0.25, len(panel.series)), "steps-post" if panel.steps else "default"
    for series, shade in zip(panel.series, shades, strict=True):
        color = RED if series.own else str(shade) if len(panel.series) > 2 else BLUE
        width = 2.0 if series.own else 1.5
        axis.plot(series.x, series.y, color=color, linewidth=width, drawstyle=style, label=series.label)
    axis.set_title(panel.title, fontsize=11)
    axis.set_xlabel("epoch")
    axis.set_ylabel(panel.ylabel)
    axis.set_xlim(0, max(series.x[-1] for series in panel.series))
    axis.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.steps:
        axis.set_yticks(np.unique(np.concatenate([series.y for series in panel.series])))
    axis.legend(fontsize=9, frameon=False, loc="lower right" if panel.steps and len(panel.series) == 1 else "best")
