"""A comparison of runs: accuracy against cost as in the paper's Figure 1, and a Markdown table."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from hf_essl.common import table
from hf_essl.reporting.figures import GREY, PALETTE, save_figure
from hf_essl.reporting.metrics import Metrics, read_metrics

logger = logging.getLogger(__name__)

COLUMNS = (
    ("kNN (%)", "knn_accuracy", ".1f"),
    ("random init (%)", "random_init_knn_accuracy", ".1f"),
    ("petaFLOPs", "petaflops", ".4f"),
    ("training (s)", "train_seconds", ".0f"),
    ("speed-up, predicted", "predicted_speedup", ".2f"),
    ("speed-up, measured", "measured_speedup", ".2f"),
)
"""Heading, key of `metrics.json` and number format of the columns in a table of runs."""


@dataclass(frozen=True)
class Group:
    """The metrics of runs that differ in their seed only."""

    name: str
    runs: tuple[Metrics, ...]

    def values(self, key: str) -> list[float]:
        """The measured values, at most one per run."""
        return [run[key] for run in self.runs if run.get(key) is not None]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def show(self, key: str, form: str) -> str:
        """The mean, and for several runs their standard deviation."""
        values = self.values(key)
        if not values:
            return "not measured"
        spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):{form}}{spread}"

    @property
    def family(self) -> str:
        """The name that a baseline and its counterpart share; they have the same color."""
        return self.name.removesuffix("_baseline").removesuffix("_efficient")

    @property
    def point(self) -> tuple[float, float] | None:
        """Mean cost and accuracy, if both were measured."""
        cost, accuracy = self.mean("petaflops"), self.mean("knn_accuracy")
        return None if cost is None or accuracy is None else (cost, accuracy)


def without_seed(name: str) -> str:
    """The name of a run without its trailing `-seedN`."""
    return name.split("-seed")[0]


def load_groups(folders: Sequence[str | Path]) -> list[Group]:
    """The runs in these folders, in order; those whose names differ in a trailing `-seedN` only are one group.

    Raises ValueError for a folder without a readable metrics.json.
    """
    groups: dict[str, list[Metrics]] = {}
    for folder in map(Path, folders):
        groups.setdefault(without_seed(folder.resolve().name), []).append(read_metrics(folder))
    return [Group(name, tuple(runs)) for name, runs in groups.items()]


def check_crops(groups: Sequence[Group]) -> None:
    """Logs a warning if the runs were evaluated on different center crops."""
    crops = sorted({run["crop_pct"] for group in groups for run in group.runs})
    if len(crops) > 1:
        shown = ", ".join(f"{crop_pct:g}" for crop_pct in crops)
        logger.warning("the accuracies are not comparable: the runs were evaluated at eval_crop_pct %s", shown)


def comparison_table(groups: Sequence[Group]) -> str:
    """A Markdown table with one row per group."""
    rows = [[g.name, str(len(g.runs)), *(g.show(key, form) for _, key, form in COLUMNS)] for g in groups]
    return table(["run", "seeds", *(title for title, _, _ in COLUMNS)], rows)


def pair_up(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Each baseline with its counterpart: `X_baseline` with `X` or `X_efficient`.

    If no names match, the first group is the baseline of all others.
    """
    baselines = {group.family: group for group in groups if group.name.endswith("_baseline")}
    others = [group for group in groups if group not in baselines.values()]
    pairs = [(baselines[group.family], group) for group in others if group.family in baselines]
    return pairs or [(groups[0], group) for group in groups[1:]]


def draw_comparison(groups: Sequence[Group], path: str | Path) -> Path:
    """Fig. 1: one point per run, hollow diamonds for baselines, and an arrow from each baseline to its counterpart."""
    figure = Figure(figsize=(6.8, 4.6), layout="constrained")
    axis = figure.subplots()
    pairs = pair_up(groups)
    baselines = {pair[0].name for pair in pairs} or {groups[0].name}
    families = list(dict.fromkeys(group.family for group in groups))
    for group in groups:
        color = PALETTE[families.index(group.family) % len(PALETTE)]
        shown = [run for run in group.runs if run.get("knn_accuracy") is not None]
        axis.scatter([r["petaflops"] for r in shown], [r["knn_accuracy"] for r in shown], color=color, alpha=0.3, s=20)
        if group.point:
            face = "white" if group.name in baselines else color
            axis.scatter(*group.point, facecolor=face, edgecolor=color, marker="D", s=60, label=group.name)
    for baseline, other in pairs:
        if baseline.point and other.point:
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 6, "shrinkB": 6}
            axis.annotate("", xy=other.point, xytext=baseline.point, arrowprops=arrow)
    axis.set_xlabel("training cost (petaFLOPs, counted)")
    axis.set_ylabel("kNN accuracy (%)")
    axis.margins(0.15)
    axis.locator_params(axis="x", nbins=6)
    figure.legend(frameon=False, loc="outside right upper", fontsize="small")
    return save_figure(figure, path)
