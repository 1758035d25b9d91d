"""A sweep: one file that describes several runs, such as a table of the paper.

    title: "Table 5: warm-up of F1-CLR"
    extends: ../imagenette/simsiam_resnet50_efficient.yaml
    rows:                                   # named sets of fields; `columns` are their cells in the table
      - {name: cosine, columns: {LR schedule: CA}, lr_schedule: cosine, warmup_epochs: 0}
      - {name: byol, columns: {LR schedule: CA}, extends: ../imagenette/byol_resnet50_baseline.yaml}
    grid: {warmup_epochs: [40, 80], seed: [0, 1]}   # every combination, for every row; seeds are averaged
    metric: linear                          # knn (default), online_probe, linear or finetune
    metric_args: {augment: true}            # settings of the protocol
    results: [accuracy, speedup]            # the columns of results
    across: LR schedule                     # the values of this column become groups of columns
    headings: {warmup_epochs: Warm Up}      # other headings

Speed-ups and differences are over the first row, or with `across` over the first group of the same line. Each cell is
a run in its own folder under `output_dir`. A finished one is skipped, an interrupted one is resumed.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_essl.common import Diverged, unknown
from hf_essl.config.files import baseline_of, read_yaml
from hf_essl.config.packaged import find_recipe
from hf_essl.config.values import RecipeError
from hf_essl.evaluation.run_metric import RunMetric
from hf_essl.recipe import Recipe, load_recipe
from hf_essl.reporting.compare import Group, without_seed
from hf_essl.reporting.costs import Priced
from hf_essl.reporting.metrics import Metrics
from hf_essl.reporting.recorded import CELL, COLUMNS, results_by_cell
from hf_essl.reporting.sweep_table import DEFAULT_RESULTS, RESULTS, Row, sweep_table
from hf_essl.run_folder import METRICS, last_complete_checkpoint
from hf_essl.sweep_cells import Cell, check_finished, load_cells


@dataclass(frozen=True)
class Sweep:
    """The runs of a file, and what its table shows of them."""

    title: str
    cells: list[Cell]
    metric: RunMetric
    results: dict[str, list[str]]  # by value of `across`; by the empty text without it
    across: str | None
    headings: dict[str, str]
    recorded: Mapping[str, Metrics] = field(default_factory=dict)  # by name, of cells that ran elsewhere

    @property
    def folder(self) -> Path:
        return self.cells[0].folder.parent

    def reference(self, cell: Cell) -> Cell:
        """The cell over which the speed-ups of `cell` are: the first, or the first of its line in the table."""
        if self.across is None:
            return self.cells[0]
        line = [other for other in self.cells if self._place(other) == self._place(cell)]
        return next(other for other in line if other.columns[self.across] == next(iter(self.results)))

    def table(self) -> str:
        """The Markdown table of the finished cells."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(without_seed(cell.name), []).append(cell)
        rows: dict[str, Row] = {}
        for name, cells in groups.items():
            found = tuple(run for cell in cells if (run := self.finished(cell)) is not None)
            rows[name] = Row(cells[0].columns, Group(name, found))
        curve = tuple(row for row in rows.values() if row.columns.get(self.across or "") == next(iter(self.results)))
        for name, cells in groups.items():
            reference = without_seed(self.reference(cells[0]).name)
            rows[name] = replace(rows[name], reference=rows[reference] if reference != name else None, curve=curve)
        return sweep_table(list(rows.values()), self.results, self.metric.heading, self.across, self.headings)

    def finished_cells(self) -> list[Metrics]:
        """The finished cells, each with its name and what distinguishes it, for `write_results`."""
        found = ((cell, self.finished(cell)) for cell in self.cells)
        return [
            {CELL: cell.name, COLUMNS: cell.columns, **cell.strategies, **metrics}
            for cell, metrics in found
            if metrics is not None
        ]

    def finished(self, cell: Cell) -> Metrics | None:
        """The results of a finished cell, with its `accuracy` and `seed`; None if it is not finished.

        Those of its folder, else those that were recorded elsewhere.
        """
        found = _metrics(cell)
        if found is None:
            return self.recorded.get(cell.name)
        return found | {"accuracy": self.metric.read(cell.folder), "seed": cell.recipe.training.seed}

    def _place(self, cell: Cell) -> tuple[str, ...]:
        return tuple(value for key, value in cell.columns.items() if key != self.across)


def load_sweep(
    path: str | Path,
    overrides: Sequence[str] = (),
    metric: str | None = None,
    metric_args: Mapping[str, Any] | None = None,
    recorded: Sequence[str | Path] = (),
) -> Sweep:
    """Reads a sweep; a plain recipe is a sweep of one run.

    Args:
        overrides: fields of all runs, as words of a command line.
        metric, metric_args: instead of those of the file.
        recorded: paths of `results.json`, whose cells count as finished.

    Raises RecipeError for a mistake in the file, in any of its cells, in the overrides, or in the recorded results.
    """
    content, cells = read_yaml(find_recipe(path)), load_cells(path, overrides)
    if metric is None:
        metric, settings = str(content.get("metric", "knn")), content.get("metric_args") or {}
        if not isinstance(settings, dict):
            raise RecipeError(
                f"metric_args is {settings!r} in {path}; expected settings and values, such as {{k: 20}}"
            )
    else:
        settings = metric_args or {}
    try:
        chosen = RunMetric(metric, settings)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error
    for cell in cells:
        chosen.check(cell.recipe)
    across, headings = content.get("across"), content.get("headings") or {}
    if not isinstance(headings, dict) or not isinstance(across, str | None):
        wrong = "across" if isinstance(headings, dict) else "headings"
        raise RecipeError(f"{wrong} is {content[wrong]!r} in {path}; across is a heading, headings a mapping of them")
    if across is not None and any(across not in cell.columns for cell in cells):
        raise RecipeError(f"{path}: {unknown('across', across, cells[0].columns)}")
    values = list(dict.fromkeys(cell.columns[across] for cell in cells)) if across else [""]
    results = _results(path, content.get("results", list(DEFAULT_RESULTS)), values)
    title = content.get("title", Path(path).stem)
    elsewhere = results_by_cell(recorded)
    _check_recorded(cells, elsewhere)
    return Sweep(title, cells, chosen, results, across, headings, elsewhere)


def run_sweep(
    sweep: Sweep,
    train: Callable[[Recipe], Any],
    report: Callable[[str], None] = print,
    only: Sequence[str] = (),
) -> None:
    """Runs the unfinished cells, all rows of one seed before the next; if one diverges, the next one runs.

    Call it on all processes; they decide together which cells are finished.

    Args:
        train: `hf_essl.pretrain.pretrain`.
        report: prints a line; only the main process calls it.
        only: parts of names; cells with none of them in their name do not run.

    Raises ValueError for a network that cannot work in one of the cells, before the first one runs, for a finished run
    with other settings in the folder of a cell, and if no cell has one of the names in `only`.
    """
    report = report if PartialState().is_main_process else lambda line: None
    cells = [cell for cell in sweep.cells if not only or any(part in cell.name for part in only)]
    if not cells:
        raise ValueError(f"no cell has {' or '.join(only)} in its name; there are {sweep.cells[0].name}, …")
    for cell in cells:
        cell.recipe.check_network()
    check_finished(cells)
    for number, cell in enumerate(sorted(cells, key=lambda cell: cell.recipe.training.seed), 1):
        PartialState().wait_for_everyone()  # until the main process has written the files of the cell before
        state = _state(sweep, cell)
        PartialState().wait_for_everyone()  # until all have seen the same files
        report(f"\n[{number}/{len(cells)}] {cell.name}: {state}")
        try:
            if state in ("resumed", "started"):
                train(cell.recipe)
            if state not in ("finished", "recorded") and sweep.metric.is_missing(cell.folder):
                sweep.metric.measure(cell.recipe, report)
        except Diverged as error:
            report(f"{cell.name}: {error}")


def _check_recorded(cells: Sequence[Cell], recorded: Mapping[str, Metrics]) -> None:
    """Raises RecipeError for a recorded cell that the sweep does not have, or has with other settings."""
    own = {cell.name: cell for cell in cells}
    for name, found in recorded.items():
        if name not in own:
            raise RecipeError(f"the recorded results are of another sweep: {unknown('cell', name, sorted(own))}")
        recipe = own[name].recipe
        expected = {
            COLUMNS: own[name].columns,
            "seed": recipe.training.seed,
            "method": recipe.model.method,
            "backbone": recipe.model.backbone,
            "resolution": recipe.views.resolution,
        }
        for key, value in expected.items():
            if found.get(key, value) != value:
                raise RecipeError(f"{key} of the recorded cell {name} is {found[key]}, in this sweep it is {value}")


def _state(sweep: Sweep, cell: Cell) -> str:
    """What is done with a cell; sets how its recipe starts."""
    if _metrics(cell) is None and cell.name in sweep.recorded:
        return "recorded"
    if _metrics(cell) is not None:
        return "evaluated" if sweep.metric.is_missing(cell.folder) else "finished"
    try:
        checkpoint = last_complete_checkpoint(cell.folder)
    except ValueError:
        checkpoint = None
    cell.recipe.training.resume_from_checkpoint = checkpoint
    cell.recipe.training.overwrite_output_dir = checkpoint is None  # of a run that stopped before its first checkpoint
    return "resumed" if checkpoint else "started"


def _metrics(cell: Cell) -> dict[str, Any] | None:
    """The last file of a cell; None if it is missing or damaged, so that a resumed run writes its report again."""
    try:
        found = json.loads((cell.folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def cells_to_price(paths: Sequence[str], overrides: Sequence[str] = ()) -> list[Priced]:
    """Recipes, or the cells of sweeps, each with its own counterpart for `hf_essl.reporting.costs.compare_costs`.

    The counterpart of a recipe is its `baseline:`, and that of a cell is the one of the sweep's table. The names of
    recipes with the same file name start with their folders.
    """
    found: list[Priced] = []
    for path, name in zip(paths, _distinct(paths), strict=True):
        sweep = load_sweep(path, overrides)
        if len(sweep.cells) == 1:
            recipe, baseline = sweep.cells[0].recipe, baseline_of(find_recipe(path))
            over = None if baseline is None else (baseline.stem, load_recipe(baseline, overrides))
            found.append(Priced(name, recipe, over))
            continue
        prefix = f"{name}: " if len(paths) > 1 else ""
        for cell in sweep.cells:
            reference = sweep.reference(cell)
            found.append(Priced(prefix + cell.name, cell.recipe, (reference.name, reference.recipe)))
    return found


def _distinct(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths, without suffix, that tell them apart; equal paths keep equal names."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _results(path: str | Path, given: Any, values: Sequence[str]) -> dict[str, list[str]]:
    """The columns of results for each value of `across`."""
    results = given if isinstance(given, dict) else dict.fromkeys(values, given)
    results = {str(value): names for value, names in results.items()}
    if set(results) != set(values) or not all(map(_is_texts, results.values())):
        raise RecipeError(
            f"results is {given!r} in {path}; expected a list of {', '.join(RESULTS)}, or one for each of "
            f"{', '.join(values) or 'the values of `across`'}"
        )
    for name in itertools.chain(*results.values()):
        if name not in RESULTS:
            raise RecipeError(f"{path}: {unknown('results', name, RESULTS)}")
    return results


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
