"""Runs beside each other: accuracy against cost, as the paper's Figure 1 draws it, and a table in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from hf_essl.reporting.figures import GREY, PALETTE, save_figure
from hf_essl.reporting.markdown import table
from hf_essl.reporting.metrics import Metrics, read_metrics

COLUMNS = (
    ("kNN (%)", "knn_accuracy", ".1f"),
    ("random init (%)", "random_init_knn_accuracy", ".1f"),
    ("petaFLOPs", "petaflops", ".4f"),
    ("training (s)", "train_seconds", ".0f"),
    ("speed-up, predicted", "predicted_speedup", ".2f"),
    ("speed-up, measured", "measured_speedup", ".2f"),
)
"""Heading, key of `metrics.json` and form of what a table of runs shows."""


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seed alone."""

    name: str
    runs: tuple[Metrics, ...]
    """What each run's `metrics.json` holds."""

    def values(self, key: str) -> list[float]:
        """The values that were measured, one a run at most."""
        return [run[key] for run in self.runs if run.get(key) is not None]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def show(self, key: str, form: str) -> str:
        """The mean, with the standard deviation over the runs where there are several."""
        values = self.values(key)
        if not values:
            return "not measured"
        spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):{form}}{spread}"


def load_groups(folders: Sequence[str | Path]) -> list[Group]:
    """The runs in these folders, those of one name but for a trailing `-seedN` together, in the order given.

    Raises:
        ValueError: for a folder without a readable metrics.json.
    """
    groups: dict[str, list[Metrics]] = {}
    for folder in map(Path, folders):
        groups.setdefault(folder.resolve().name.split("-seed")[0], []).append(read_metrics(folder))
    return [Group(name, tuple(runs)) for name, runs in groups.items()]


def comparison_table(groups: Sequence[Group]) -> str:
    """A Markdown table, a row a group; the mean over its runs and their standard deviation."""
    rows = [[g.name, str(len(g.runs)), *(g.show(key, form) for _, key, form in COLUMNS)] for g in groups]
    return table(["run", "seeds", *(title for title, _, _ in COLUMNS)], rows)


def pair_up(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Each baseline with what it is compared to: `X_baseline` with `X` or `X_efficient`.

    Where no two names match so, the first group is the baseline of all others.
    """
    baselines = {_family(group): group for group in groups if group.name.endswith("_baseline")}
    others = [group for group in groups if group not in baselines.values()]
    pairs = [(baselines[_family(group)], group) for group in others if _family(group) in baselines]
    return pairs or [(groups[0], group) for group in groups[1:]]


def draw_comparison(groups: Sequence[Group], path: str | Path) -> Path:
    """Fig. 1: a point a run, hollow diamonds for baselines, an arrow to what each is compared to."""
    figure = Figure(figsize=(6.8, 4.6), layout="constrained")
    axis = figure.subplots()
    pairs = pair_up(groups)
    baselines = {pair[0].name for pair in pairs} or {groups[0].name}
    families = list(dict.fromkeys(_family(group) for group in groups))
    for group in groups:
        color = PALETTE[families.index(_family(group)) % len(PALETTE)]
        shown = [run for run in group.runs if run.get("knn_accuracy") is not None]
        axis.scatter([r["petaflops"] for r in shown], [r["knn_accuracy"] for r in shown], color=color, alpha=0.3, s=20)
        point = _mean_point(group)
        if point:
            face = "white" if group.name in baselines else color
            axis.scatter([point[0]], [point[1]], facecolor=face, edgecolor=color, marker="D", s=60, label=group.name)
    for baseline, other in pairs:
        start, end = _mean_point(baseline), _mean_point(other)
        if start and end:
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 6, "shrinkB": 6}
            axis.annotate("", xy=end, xytext=start, arrowprops=arrow)
    axis.set_xlabel("training cost (petaFLOPs, counted)")
    axis.set_ylabel("kNN accuracy (%)")
    axis.margins(0.15)
    axis.locator_params(axis="x", nbins=6)
    figure.legend(frameon=False, loc="outside right upper", fontsize="small")
    return save_figure(figure, path)


def _family(group: Group) -> str:
    """The name that a baseline shares with what it is compared to: they have one colour."""
    return group.name.removesuffix("_baseline").removesuffix("_efficient")


def _mean_point(group: Group) -> tuple[float, float] | None:
    cost, accuracy = group.mean("petaflops"), group.mean("knn_accuracy")
    return None if cost is None or accuracy is None else (cost, accuracy)
