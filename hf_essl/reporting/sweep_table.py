"""The table of a sweep: one line per group of runs, with the columns of the paper's table."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from hf_essl.common import table
from hf_essl.reporting.compare import Group, same_device

NOTHING = "not measured"
EQUAL = 1e-9  # points


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only; each run is its `metrics.json` with `accuracy` and `seed`."""

    columns: Mapping[str, str]  # what distinguishes them from other rows, by heading
    group: Group
    reference: "Row | None" = None  # speed-ups are over it; None for itself
    curve: tuple["Row", ...] = field(default=(), repr=False)  # rows of the plain schedule at several lengths


@dataclass(frozen=True)
class Result:
    """A column of results."""

    heading: str  # of the accuracy: that of the metric
    show: Callable[[Row], str]


def sweep_table(
    rows: Sequence[Row],
    results: Mapping[str, Sequence[str]],
    accuracy_heading: str,
    across: str | None = None,
    headings: Mapping[str, str] | None = None,
) -> str:
    """A Markdown table of the rows; means and standard deviations over seeds.

    Args:
        results: names in `RESULTS` for each value of the column `across`; without `across`, for the empty text.
        accuracy_heading: of the metric.
        across: heading of a column whose values become groups of columns, as in the paper's Table 2.
        headings: other headings, by column or by result.
    """
    headings = {"accuracy": accuracy_heading, **(headings or {})}
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        place = tuple(value for key, value in row.columns.items() if key != across)
        lines.setdefault(place, {})[row.columns[across] if across else ""] = row
    first = [headings.get(key, key) for key in rows[0].columns if key != across]
    header = [*first, *([] if across else ["seeds"])]
    group = headings.get(across, across) if across else None
    for value, names in results.items():
        header += [_title(group, value, headings.get(name, RESULTS[name].heading)) for name in names]
    body = []
    for place, found in lines.items():
        line = [*place, *([] if across else [str(len(found[""].group.runs))])]
        for value, names in results.items():
            paired = "difference" in names  # which says more than the difference of two means
            shown = {name: _mean if name == "accuracy" and paired else RESULTS[name].show for name in names}
            line += [shown[name](found[value]) if value in found else "" for name in names]
        body.append(line)
    return table(header, body)


def _title(across: str | None, value: str, title: str) -> str:
    """A heading of results, after the group of columns that it belongs to: `Baseline: …`, or `m=3: …`."""
    if not across:
        return title
    is_number = value.replace(".", "", 1).isdigit()
    return f"{across}={value}: {title}" if is_number else f"{value}: {title}"


def _mean(row: Row) -> str:
    return row.group.show("accuracy", ".1f")


def _accuracy(row: Row) -> str:
    text, ours = _mean(row), row.group.mean("accuracy")
    baseline = None if row.reference is None else row.reference.group.mean("accuracy")
    return text if ours is None or baseline is None else f"{text} ({ours - baseline:+.1f})"


def _petaflops(key: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = row.group.mean(key)
        return NOTHING if value is None else f"{value:.4g}"

    return show


def _speedup(key: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        against = row.reference or row
        if key == "train_seconds" and not same_device(row.group, against.group):
            return NOTHING
        reference, value = against.group.mean(key), row.group.mean(key)
        return f"{reference / value:.2f}x" if reference and value else NOTHING

    return show


def _overhead(row: Row) -> str:
    value = row.group.mean("selection_overhead")
    return NOTHING if value is None else f"{value:.1f}"


def _difference(row: Row) -> str:
    """Accuracy minus the reference's over common seeds: mean ± standard error, and p of a paired t test."""
    if row.reference is None:
        return ""
    found = _differences(row, row.reference)
    if not found:
        return NOTHING
    mean = statistics.fmean(found)
    if len(found) == 1:
        return f"{mean:+.1f}"
    error = statistics.stdev(found) / math.sqrt(len(found))
    p = f" (p = {ttest_1samp(found, 0.0).pvalue:.2g})" if error > EQUAL else ""  # equal differences have no spread
    return f"{mean:+.1f} ± {error:.1f}{p}"


def _at_least(row: Row) -> str:
    """The lower end of the one-sided 95 % interval of the difference, by Student's t over common seeds."""
    found = [] if row.reference is None else _differences(row, row.reference)
    if len(found) < 2:
        return "" if row.reference is None else NOTHING
    error = statistics.stdev(found) / math.sqrt(len(found))
    return f"{statistics.fmean(found) - student_t.ppf(0.95, len(found) - 1) * error:+.1f}"


def _differences(row: Row, reference: Row) -> list[float]:
    """Accuracy minus the reference's, for each seed that both have."""
    theirs = {run["seed"]: run["accuracy"] for run in reference.group.runs}
    pairs = [(run["accuracy"], theirs[run["seed"]]) for run in row.group.runs if run["seed"] in theirs]
    return [ours - other for ours, other in pairs if None not in (ours, other)]


def cost_at(curve: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """The cost at which a curve of (cost, accuracy) first reaches an accuracy, linear between its points.

    None if it starts above this accuracy or never reaches it.
    """
    points = sorted(curve)
    for (cost, low), (next_cost, high) in pairwise(points):
        if low <= accuracy <= high:
            return cost if low == high else cost + (next_cost - cost) * (accuracy - low) / (high - low)
    return None


def _equal_accuracy(row: Row) -> str:
    """How much more the plain schedule costs until it is as accurate as this row (Table 7, right)."""
    found = [(r.group.mean("petaflops"), r.group.mean("accuracy")) for r in row.curve]
    curve = [(cost, accuracy) for cost, accuracy in found if cost is not None and accuracy is not None]
    cost, accuracy = row.group.mean("petaflops"), row.group.mean("accuracy")
    if not cost or accuracy is None or not curve:
        return NOTHING
    reached = cost_at(curve, accuracy)
    if reached is not None:
        return f"{reached / cost:.2f}x"
    if accuracy > max(value for _, value in curve):
        return f"> {max(curve)[0] / cost:.2f}x"
    return f"< {min(curve)[0] / cost:.2f}x"


RESULTS = {
    "accuracy": Result("accuracy (%)", _accuracy),
    "difference": Result("difference (points)", _difference),
    "at_least": Result("at least (points, 95 %)", _at_least),
    "petaflops": Result("petaFLOPs", _petaflops("petaflops")),
    "paper_petaflops": Result("petaFLOPs, paper's convention", _petaflops("petaflops_paper_convention")),
    "speedup": Result("Speedup", _speedup("petaflops")),
    "seconds": Result("training (s)", lambda row: row.group.show("train_seconds", ".0f")),
    "wallclock_speedup": Result("Speedup in wall-clock", _speedup("train_seconds")),
    "overhead": Result("Overhead (%)", _overhead),
    "equal_accuracy": Result("Speedup at equal accuracy", _equal_accuracy),
}
DEFAULT_RESULTS = ("accuracy", "petaflops", "speedup", "seconds", "wallclock_speedup")
