"""How much less one recipe costs than another at equal accuracy, from runs at several lengths."""

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.polynomial import Polynomial

from hf_essl.common import table
from hf_essl.reporting.compare import MARKERS, SCORES, Group, same_device, score_of
from hf_essl.reporting.figures import GREY, PALETTE, save_figure
from hf_essl.reporting.recorded import PLAIN

COSTS = {"petaflops": "petaFLOPs", "train_seconds": "training (s)"}
OF_THE_LENGTH = ("steps", "warmup_epochs")
"""Settings that change with the length of a run."""
QUADRATIC_FROM = 4  # lengths; a line through fewer
RESAMPLES, INTERVAL = 1000, (2.5, 97.5)
DEVIATIONS = 2  # degrees of freedom of the spread over seeds, over all lengths of a recipe
ROUNDING = 1e-6  # points of accuracy: a curve reaches its own last point


@dataclass(frozen=True)
class Arm:
    """The runs of one recipe at several lengths."""

    name: str
    lengths: tuple[Group, ...]

    def points(self, cost: str, score: str) -> list[np.ndarray]:
        """Cost and score of the runs of each length, ascending, runs x 2 each; lengths without both are left out."""
        return [points for _, points in self._measured(cost, score)]

    def names(self, cost: str, score: str) -> list[str]:
        """The names of the lengths in `points`."""
        return [name for name, _ in self._measured(cost, score)]

    def _measured(self, cost: str, score: str) -> list[tuple[str, np.ndarray]]:
        found = []
        for group in self.lengths:
            pairs = [(run.get(cost) or 0.0, run.get(score)) for run in group.runs]
            if both := [(x, y) for x, y in pairs if x > 0 and y is not None]:
                found.append((group.name, np.array(both, dtype=float)))
        return sorted(found, key=lambda length: length[1][:, 0].mean())


@dataclass(frozen=True)
class Curve:
    """Accuracy over the logarithm of the cost, between the shortest and the longest length."""

    fitted: Polynomial
    costs: np.ndarray  # of the lengths, ascending

    @staticmethod
    def fit(points: Sequence[np.ndarray]) -> "Curve":
        """A least-squares fit to the means of the lengths: a line, or a parabola from four lengths on."""
        means = np.array([runs.mean(axis=0) for runs in points])
        degree = 2 if len(means) >= QUADRATIC_FROM else 1
        return Curve(Polynomial.fit(np.log(means[:, 0]), means[:, 1], degree), means[:, 0])

    def at(self, cost: float | np.ndarray) -> np.ndarray:
        return self.fitted(np.log(cost))

    def cost_of(self, accuracy: float) -> float:
        """The cost at which the curve first reaches an accuracy; 0 if it starts above, infinity if it never does."""
        grid = np.linspace(np.log(self.costs[0]), np.log(self.costs[-1]), 500)
        values, first = np.unique(np.maximum.accumulate(self.fitted(grid)), return_index=True)
        if accuracy < values[0] - ROUNDING:
            return 0.0
        return (
            math.inf if accuracy > values[-1] + ROUNDING else float(np.exp(np.interp(accuracy, values, grid[first])))
        )


@dataclass(frozen=True)
class Ratio:
    """A cost over the cost of another recipe that is as accurate, with a 95 % bootstrap interval."""

    accuracy: float  # %
    cost: float  # at which the first recipe has this accuracy
    value: float  # 0 if the other recipe never reaches the accuracy, infinity if its shortest run is above it
    floor: float  # the cost over that of the other recipe's longest run
    ceiling: float  # and over that of its shortest
    interval: tuple[float, float] | None = None  # None if nothing is known of the spread over seeds

    def __str__(self) -> str:
        if self.interval is None:
            return self._show(self.value)
        low, high = map(self._show, self.interval)
        return f"{self._show(self.value)} ({low} to {high})"

    def _show(self, value: float) -> str:
        if value == 0:
            return f"< {self.floor:.2f}"
        return f"> {self.ceiling:.2f}" if math.isinf(value) else f"{value:.2f}"


def ratio_at(plain: Sequence[np.ndarray], other: Sequence[np.ndarray], length: int) -> Ratio:
    """The plain recipe's cost over the other's at the accuracy that the plain one has at one of its lengths.

    Each counts from where its own curve first reaches this accuracy, so a recipe is not ahead of itself.

    Args:
        plain, other: cost and accuracy of the runs of each length, ascending, runs x 2 each.
        length: index into `plain`.

    The interval is that of `RESAMPLES` bootstrap samples, see `_resample`. It needs `DEVIATIONS` in each recipe.
    """
    found = _ratio(plain, other, length)
    if min(sum(len(runs) - 1 for runs in points) for points in (plain, other)) < DEVIATIONS:
        return found
    random = np.random.default_rng(0)
    drawn = [_ratio(_resample(plain, random), _resample(other, random), length).value for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, INTERVAL, method="nearest")
    return replace(found, interval=(float(low), float(high)))


def _ratio(plain: Sequence[np.ndarray], other: Sequence[np.ndarray], length: int) -> Ratio:
    baseline, curve = Curve.fit(plain), Curve.fit(other)
    accuracy = float(baseline.at(baseline.costs[length]))
    cost, reached = baseline.cost_of(accuracy), curve.cost_of(accuracy)
    value = cost / reached if reached else math.inf
    return Ratio(accuracy, cost, value, cost / curve.costs[-1], cost / curve.costs[0])


def _resample(points: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """Runs around the mean of each length, with deviations drawn from those of all lengths of the recipe.

    Two or three seeds of one length alone say little about their spread. The mean of n runs lies among them, so their
    deviations are scaled by the root of n / (n - 1). Costs deviate by a share.
    """
    logs = [np.stack([np.log(runs[:, 0]), runs[:, 1]], axis=1) for runs in points]
    means = [runs.mean(axis=0) for runs in logs]
    several = [(runs, mean) for runs, mean in zip(logs, means, strict=True) if len(runs) > 1]
    deviations = np.concatenate([(runs - mean) * math.sqrt(len(runs) / (len(runs) - 1)) for runs, mean in several])
    chosen = [random.integers(len(deviations), size=len(runs)) for runs in points]
    drawn = [mean + deviations[indices] for mean, indices in zip(means, chosen, strict=True)]
    return [np.stack([np.exp(runs[:, 0]), runs[:, 1]], axis=1) for runs in drawn]


def arms_of(groups: Sequence[Group]) -> list[Arm]:
    """The recipes that were run at two lengths or more: groups whose settings differ only by the length.

    Groups without a `recipe.yaml` are of one recipe if their names are equal up to a trailing `_NUMBER`.
    """
    found: dict[str, list[Group]] = {}
    for group in groups:
        own = {key: value for key, value in group.settings.items() if key not in OF_THE_LENGTH}
        key = json.dumps(own, sort_keys=True, default=str) if PLAIN.keys() <= own.keys() else _base(group.name)
        found.setdefault(key, []).append(group)
    return [Arm(_common_name(same), tuple(same)) for same in found.values() if len(same) > 1]


def _common_name(groups: Sequence[Group]) -> str:
    """What the names start with, without a length."""
    letters = itertools.takewhile(
        lambda each: len(set(each)) == 1, zip(*(group.name for group in groups), strict=False)
    )
    return _base("".join(letter for letter, *_ in letters)) or groups[0].name


def _base(name: str) -> str:
    """A name without its length: of `plain_12`, of `plain_num_train_epochs12`, or of the common part of several."""
    return re.sub(r"(?:[_-]|(?:^|_)(?:num_train_epochs|max_steps))[\d.]*$", "", name.split(" (")[0]) or name


def pair_arms(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Each recipe with the plain one of its method and backbone.

    It has a constant resolution, no selection and cosine annealing; without such a recipe, it is the first one.
    """
    kinds: dict[tuple, list[Arm]] = {}
    for arm in arms:
        first = arm.lengths[0].runs[0]
        kinds.setdefault((first.get("method"), first.get("backbone")), []).append(arm)
    pairs = []
    for same in kinds.values():
        plain = next((arm for arm in same if _is_plain(arm)), same[0])
        pairs += [(plain, arm) for arm in same if arm is not plain]
    return pairs


def _is_plain(arm: Arm) -> bool:
    first = arm.lengths[0]
    known = {**first.runs[0], **first.settings}  # a cell of a results.json has them among its figures
    return all(known.get(key) == value for key, value in PLAIN.items())


def pairs_at_equal_accuracy(groups: Sequence[Group]) -> list[tuple[Arm, Arm]]:
    """The pairs of recipes whose runs can be compared at equal accuracy: both measured at two lengths or more."""
    score = score_of(groups)
    pairs = pair_arms(arms_of(groups))
    return [pair for pair in pairs if _is_measured(pair, "petaflops", score)]


def equal_accuracy_table(pairs: Sequence[tuple[Arm, Arm]], score: str) -> str:
    """A Markdown table: for each length of each plain recipe, how many times less the other one costs."""
    header = ["recipe", "against", "at accuracy (%)", *(f"{title}, times less" for title in COSTS.values())]
    rows = []
    for plain, other in pairs:
        for length in reversed(plain.names("petaflops", score)):
            ratios = [_ratio_of(plain, other, cost, score, length) for cost in COSTS]
            accuracy = next(ratio.accuracy for ratio in ratios if ratio)
            texts = [str(ratio) if ratio else "not measured" for ratio in ratios]
            rows.append([other.name, plain.name, f"{accuracy:.1f}", *texts])
    return table(header, rows)


def _ratio_of(plain: Arm, other: Arm, cost: str, score: str, length: str) -> Ratio | None:
    ours, theirs = (arm.points(cost, score) for arm in (plain, other))
    measured = plain.names(cost, score)
    if length not in measured or not _is_measured((plain, other), cost, score):
        return None
    return ratio_at(ours, theirs, measured.index(length))


def draw_equal_accuracy(pairs: Sequence[tuple[Arm, Arm]], score: str, path: str | Path) -> Path:
    """Accuracy over petaFLOPs and over seconds, with the fitted curves and the ratio at the best common accuracy.

    A cost that was measured for no pair has no panel.
    """
    costs = {cost: title for cost, title in COSTS.items() if any(_is_measured(pair, cost, score) for pair in pairs)}
    figure = Figure(figsize=(2.5 + 4 * len(costs), 4.4), layout="constrained")
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axis, (cost, title) in zip(axes, costs.items(), strict=True):
        for number, pair in enumerate(pairs):
            if not _is_measured(pair, cost, score):
                continue
            curves = [arm.points(cost, score) for arm in pair]
            style = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
            for arm, points, is_plain in zip(pair, curves, (True, False), strict=True):
                _draw_curve(axis, arm.name, points, style, is_plain)
            _draw_ratio(axis, curves[0], curves[1], style["color"])
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(title)
        axis.grid(color=GREY, alpha=0.2, linewidth=0.6)
    figure.axes[0].set_ylabel(SCORES[score])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right upper", fontsize=9)
    return save_figure(figure, path)


def _is_measured(pair: tuple[Arm, Arm], cost: str, score: str) -> bool:
    """Whether both recipes have the cost at two lengths or more, and seconds of one kind of machine."""
    groups = [group for arm in pair for group in arm.lengths]
    return all(len(arm.points(cost, score)) > 1 for arm in pair) and (cost == "petaflops" or same_device(*groups))


def _draw_curve(axis: Axes, name: str, points: Sequence[np.ndarray], style: dict, is_plain: bool) -> None:
    curve, face = Curve.fit(points), "white" if is_plain else style["color"]
    costs = np.geomspace(curve.costs[0], curve.costs[-1], 100)
    axis.plot(costs, curve.at(costs), color=style["color"], linestyle="--" if is_plain else "-", linewidth=1.2)
    runs = np.concatenate(list(points))
    axis.plot(*runs.T, linestyle="", markersize=5, markerfacecolor=face, label=name, **style)


def _draw_ratio(axis: Axes, plain: Sequence[np.ndarray], other: Sequence[np.ndarray], color: str) -> None:
    """A line at the highest accuracy of the plain lengths that the other recipe reaches, with the ratio."""
    for ratio in (ratio_at(plain, other, length) for length in reversed(range(len(plain)))):
        if 0 < ratio.value < math.inf:
            ends, height = [ratio.cost / ratio.value, ratio.cost], [ratio.accuracy] * 2
            axis.plot(ends, height, color=color, linewidth=3, alpha=0.4)
            style: dict[str, Any] = {"ha": "right", "fontsize": 8, "bbox": {"color": "white", "alpha": 0.7, "pad": 1}}
            axis.annotate(f"{ratio} ×", (ends[0], height[0]), (-4, 6), textcoords="offset points", **style)
            return
