"""A comparison of runs: accuracy against cost as in the paper's Figure 1, and a Markdown table."""

import logging
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_essl.common import table
from hf_essl.recipe import read_recipe
from hf_essl.reporting.figures import GREY, PALETTE, save_figure
from hf_essl.reporting.metrics import Metrics, read_metrics
from hf_essl.reporting.recorded import CELL, read_results
from hf_essl.run_folder import RECIPE, checkpoints

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
RETRIEVAL = (("view retrieval (%)", "retrieval", ".1f"), ("random init (%)", "random_init_retrieval", ".1f"))
SCORES = {"knn_accuracy": "kNN accuracy (%)", "retrieval": "view retrieval (%)"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")  # more than colors: each pair of both is one family
LENGTH = ("method", "backbone", "steps", "images_per_step", "train_images", "resolution")
IRRELEVANT = frozenset(
    """dataset cache cache_dir streaming output_dir overwrite_output_dir measure_speedup logging_steps save_total_limit
    per_device_eval_batch_size knn_every_epochs online_probe on_divergence channels_last view_executor compile_views
    per_device_train_batch_size max_unreadable num_train_epochs""".split()
)
"""Fields of a recipe in which runs of one group may differ; steps and images per step say how long a run was."""
INHERITED = frozenset("optim_args adam_beta1 adam_beta2 adam_epsilon bf16 fp16 tf32 train_sampling_strategy".split())
"""Fields of transformers.TrainingArguments in which they must not differ."""


@dataclass(frozen=True)
class Group:
    """The metrics of runs that differ in their seed only."""

    name: str
    runs: tuple[Metrics, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of the first run, see `settings_of`

    def values(self, key: str) -> list[float]:
        """The measured values, at most one per run."""
        return [run[key] for run in self.runs if run.get(key) is not None]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def show(self, key: str, form: str) -> str:
        """The mean, and for runs of different values their standard deviation."""
        values = self.values(key)
        if not values:
            return "not measured"
        spread = f" ± {statistics.stdev(values):{form}}" if len(set(values)) > 1 else ""
        return f"{statistics.fmean(values):{form}}{spread}"

    @property
    def family(self) -> str:
        """The name that a baseline and its counterpart share; they have the same color."""
        return self.name.removesuffix("_baseline").removesuffix("_efficient")

    def point(self, score: str) -> tuple[float, float] | None:
        """Mean cost and score, if both were measured."""
        cost, value = self.mean("petaflops"), self.mean(score)
        return None if cost is None or value is None else (cost, value)


def without_seed(name: str) -> str:
    """The name of a run without its trailing `-seedN`."""
    return re.sub(r"-seed\d+$", "", name)


def load_groups(folders: Sequence[str | Path]) -> list[Group]:
    """The finished runs in these folders, in order; those that differ in their seed only are one group.

    They have the same name up to a trailing `-seedN`. Runs of one name with other recipes or lengths are groups of
    their own, named by what differs. A `results.json` stands for the cells of its sweep. Logs a line for each run that
    is left out because it has not ended.

    Raises ValueError for a folder without a run, if no run has ended, and for runs on different datasets.
    """
    named: dict[str, list[tuple[Metrics, dict[str, Any]]]] = {}
    for folder in map(Path, folders):
        if folder.is_file():
            for cell in read_results(folder):
                named.setdefault(without_seed(cell[CELL]), []).append((cell, _length_of(cell)))
            continue
        try:
            metrics = read_metrics(folder)
        except ValueError as error:
            if not is_unfinished(folder):
                raise
            logger.warning("left out: %s", error)
            continue
        named.setdefault(without_seed(folder.resolve().name), []).append((metrics, settings_of(folder, metrics)))
    if not named:
        raise ValueError("none of the runs has ended; pass at least one that has a metrics.json")
    groups = [group for name, runs in named.items() for group in _split(name, runs)]
    _check_dataset(groups)
    return groups


def same_device(*groups: Group) -> bool:
    """Whether all runs whose machine is known were on one kind of machine, so that their seconds can be compared."""
    return len({run["device"] for group in groups for run in group.runs if run.get("device")}) < 2


def is_unfinished(folder: Path) -> bool:
    """Whether a run was started in the folder, but has no results yet."""
    return not (folder / "metrics.json").exists() and ((folder / RECIPE).is_file() or bool(checkpoints(folder)))


def settings_of(folder: Path, metrics: Metrics) -> dict[str, Any]:
    """What must be equal for two runs to differ in their seed only; of older runs, what is known."""
    found = _length_of(metrics)
    if (folder / RECIPE).is_file():
        recipe = read_recipe(folder / RECIPE)
        for group in (recipe.model, recipe.data, recipe.views, recipe.training):
            fields = type(group).__annotations__.keys() - IRRELEVANT
            found |= {key: getattr(group, key) for key in sorted(fields)}
        found |= {key: getattr(recipe.training, key) for key in sorted(INHERITED)}
    return found


def _length_of(metrics: Metrics) -> dict[str, Any]:
    return {key: metrics[key] for key in LENGTH if metrics.get(key) is not None}


def _split(name: str, runs: Sequence[tuple[Metrics, dict[str, Any]]]) -> list[Group]:
    """The groups of the runs of one name."""
    known = set.intersection(*(set(settings) for _, settings in runs))
    different = [key for key in runs[0][1] if key in known and any(s[key] != runs[0][1][key] for _, s in runs)]
    groups: dict[str, list[tuple[Metrics, dict[str, Any]]]] = {}
    for metrics, settings in runs:
        shown = ", ".join(f"{key} {settings[key]}" for key in different)
        groups.setdefault(f"{name} ({shown})" if shown else name, []).append((metrics, settings))
    if different:
        logger.warning("the runs %s differ in %s and are not averaged", name, ", ".join(different))
    return [Group(title, tuple(metrics for metrics, _ in found), found[0][1]) for title, found in groups.items()]


def _check_dataset(groups: Sequence[Group]) -> None:
    named = [(group.name, run["dataset"]) for group in groups for run in group.runs if run.get("dataset")]
    for name, dataset in named[1:]:
        first, expected = named[0]
        if dataset != expected:
            raise ValueError(f"dataset of {first} is {expected}, of {name} {dataset}; compare runs on the same images")


def check_evaluation(groups: Sequence[Group]) -> None:
    """Logs a warning if the runs were evaluated on different center crops, or on different numbers of images."""
    for key, name in (("crop_pct", "eval_crop_pct"), ("eval_images", "evaluation images:")):
        values = sorted({run[key] for group in groups for run in group.runs if run.get(key) is not None})
        if len(values) > 1:
            shown = ", ".join(f"{value:g}" for value in values)
            logger.warning("the accuracies are not comparable: the runs were evaluated at %s %s", name, shown)


def comparison_table(groups: Sequence[Group]) -> str:
    """A Markdown table with one row per group; without any kNN accuracy, view retrieval takes its place."""
    columns = COLUMNS if score_of(groups) == "knn_accuracy" else (*RETRIEVAL, *COLUMNS[len(RETRIEVAL) :])
    columns = (*columns, ("epochs", "epochs", ".4g"))
    rows = [[g.name, str(len(g.runs)), *(g.show(key, form) for _, key, form in columns)] for g in groups]
    return table(["run", "seeds", *(title for title, _, _ in columns)], rows)


def score_of(groups: Sequence[Group]) -> str:
    """The key of `metrics.json` by which the runs are compared: kNN accuracy, or without any, view retrieval."""
    is_unlabeled = not any(group.values("knn_accuracy") for group in groups)
    return "retrieval" if is_unlabeled and any(group.values("retrieval") for group in groups) else "knn_accuracy"


def pair_up(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Each baseline with its counterpart: `X_baseline` with `X` or `X_efficient`.

    If no names match, the first group is the baseline of all others.
    """
    baselines = {group.family: group for group in groups if group.name.endswith("_baseline")}
    others = [group for group in groups if group not in baselines.values()]
    pairs = [(baselines[group.family], group) for group in others if group.family in baselines]
    return pairs or [(groups[0], group) for group in groups[1:]]


def draw_comparison(groups: Sequence[Group], path: str | Path) -> Path:
    """Fig. 1: accuracy against cost, with an arrow from each baseline to its counterpart.

    A marker with its own shape and color for each family, hollow for a baseline, at the mean of the seeds; bars are
    their standard deviations, and faint markers the single runs.
    """
    figure = Figure(figsize=(8.2, 4.8), layout="constrained")
    axis = figure.subplots()
    score, pairs = score_of(groups), pair_up(groups)
    baselines = {pair[0].name for pair in pairs} or {groups[0].name}
    families = list(dict.fromkeys(group.family for group in groups))
    for baseline, other in pairs:
        if (start := baseline.point(score)) and (end := other.point(score)):
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 7, "shrinkB": 7}
            axis.annotate("", xy=end, xytext=start, arrowprops=arrow)
    for group in groups:
        number = families.index(group.family)
        style = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
        _draw_group(axis, group, score, style, hollow=group.name in baselines)
    if not any(group.point(score) for group in groups):
        axis.text(0.5, 0.5, "no run has an accuracy", ha="center", va="center", transform=axis.transAxes, color=GREY)
    axis.set_xlabel("training cost (petaFLOPs, counted)")
    axis.set_ylabel(SCORES[score])
    axis.margins(0.15)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(color=GREY, alpha=0.2, linewidth=0.6)
    if any(len(group.runs) > 1 for group in groups):
        axis.set_title("mean over the seeds; bars: standard deviation", fontsize=9)
    figure.legend(frameon=False, loc="outside right upper", fontsize=9)
    return save_figure(figure, path)


def _draw_group(axis: Axes, group: Group, score: str, style: dict[str, Any], hollow: bool) -> None:
    point = group.point(score)
    if point is None:
        return
    runs = [run for run in group.runs if run.get(score) is not None]
    if len(runs) > 1:
        costs, scores = ([run[key] for run in runs] for key in ("petaflops", score))
        axis.scatter(costs, scores, alpha=0.3, s=16, **style)
        spread = {"xerr": statistics.stdev(costs), "yerr": statistics.stdev(scores)}
        axis.errorbar(*point, **spread, color=style["color"], linewidth=1.2, capsize=3)
    face = "white" if hollow else style["color"]
    label = "\n".join(textwrap.wrap(group.name, 34, break_long_words=False))
    axis.plot(*point, linestyle="", markersize=8, markerfacecolor=face, zorder=3, label=label, **style)
