"""A sweep: one file that describes several runs, a table of the paper for instance, run cell by cell.

    title: "Table 5: warm-up of F1-CLR"
    extends: ../imagenette/simsiam_resnet50_efficient.yaml
    rows:                                   # named sets of fields; `columns` says how the table shows them
      - {name: cosine, columns: {LR schedule: CA}, lr_schedule: cosine, warmup_epochs: 0}
    grid: {warmup_epochs: [40, 80], seed: [0, 1]}   # every combination, of every row; seeds are averaged

Each cell is a run of its own under `output_dir`, which is finished, resumed or begun as it finds it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_essl.common import Diverged
from hf_essl.config.files import SWEEP_KEYS, read_yaml
from hf_essl.config.values import RecipeError
from hf_essl.recipe import Recipe, load_recipe
from hf_essl.reporting.compare import Group
from hf_essl.reporting.markdown import table
from hf_essl.run_folder import last_complete_checkpoint


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    columns: dict[str, str]
    """What tells it from the other cells, by the headings of the table; the seed is no column."""
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return self.recipe.training.folder


def load_cells(path: str | Path, overrides: Sequence[str] = ()) -> list[Cell]:
    """The runs that a file describes; one, for a plain recipe.

    Raises:
        RecipeError: for whatever is wrong with the file, any of its cells, or the overrides.
    """
    content = read_yaml(Path(path))
    if not any(key in content for key in SWEEP_KEYS):
        return [Cell(Path(path).stem, {}, load_recipe(path, overrides))]
    rows, grid = content.get("rows") or [{}], content.get("grid") or {}
    _check(path, rows, grid)
    base = load_recipe(path, overrides, cell={}).training.folder
    cells = []
    for row in rows:
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            fields = {key: value for key, value in row.items() if key not in ("name", "columns")} | chosen
            name = _name(row, chosen)
            recipe = load_recipe(path, [*overrides, "--output_dir", f"{base}/{name}"], cell=fields)
            cells.append(Cell(name, _columns(row, chosen), recipe))
    return cells


def run_sweep(cells: Sequence[Cell], train: Callable[[Recipe], Any], report: Callable[[str], None] = print) -> None:
    """Runs the cells that are not finished, in order; a cell that diverges is told and the others go on.

    Args:
        train: `hf_essl.pretrain.pretrain`.
    """
    for number, cell in enumerate(cells, 1):
        state = _state(cell)
        report(f"\n[{number}/{len(cells)}] {cell.name}: {state}")
        if state == "finished":
            continue
        if state == "resumed":
            cell.recipe.training.resume_from_checkpoint = last_complete_checkpoint(cell.folder)
        else:
            cell.recipe.training.overwrite_output_dir = True  # of a start that was cut before it saved anything
        try:
            train(cell.recipe)
        except Diverged as error:
            report(f"{cell.name}: {error}")


def sweep_table(cells: Sequence[Cell], finished: Mapping[str, dict]) -> str:
    """The table in Markdown: what varies, accuracy with its spread over seeds, cost, and speed-ups over the first row.

    Args:
        finished: `metrics.json` of the finished cells, by their names.
    """
    groups = [
        (columns, Group(name, tuple(finished[cell.name] for cell in members if cell.name in finished)))
        for name, columns, members in _by_row(cells)
    ]
    first = groups[0][1]
    header = [*groups[0][0], "seeds", "kNN-Acc. (%)", "petaFLOPs", "Speedup", "training (s)", "Speedup in wall-clock"]
    lines = []
    for columns, group in groups:
        accuracy = group.show("knn_accuracy", ".1f")
        gain = _difference(group.mean("knn_accuracy"), first.mean("knn_accuracy"))
        lines.append(
            [
                *columns.values(),
                str(len(group.runs)),
                accuracy if group is first or not gain else f"{accuracy} ({gain})",
                _petaflops(group),
                _ratio(first.mean("petaflops"), group.mean("petaflops")),
                group.show("train_seconds", ".0f"),
                _ratio(first.mean("train_seconds"), group.mean("train_seconds")),
            ]
        )
    return table(header, lines)


def _petaflops(group: Group) -> str:
    """The mean alone: seeds cost the same."""
    mean = group.mean("petaflops")
    return "not measured" if mean is None else f"{mean:.4g}"


def _state(cell: Cell) -> str:
    if (cell.folder / "metrics.json").exists():
        return "finished"
    try:
        last_complete_checkpoint(cell.folder)
    except ValueError:
        return "begun"
    return "resumed"


def _by_row(cells: Sequence[Cell]) -> list[tuple[str, dict[str, str], list[Cell]]]:
    """Cells that differ in their seed alone, together."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.name.split("-seed")[0], []).append(cell)
    return [(name, members[0].columns, members) for name, members in rows.items()]


def _name(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    varied = [f"{key}{value}" for key, value in chosen.items() if key != "seed"]
    name = "_".join([*([str(row["name"])] if "name" in row else []), *varied]) or "run"
    seed = f"-seed{chosen['seed']}" if "seed" in chosen else ""
    return re.sub(r"[^\w.+-]+", "-", name) + seed


def _columns(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, str]:
    shown = row.get("columns") or ({"run": row["name"]} if "name" in row else {})
    return {str(key): str(value) for key, value in {**shown, **chosen}.items() if key != "seed"}


def _check(path: str | Path, rows: Any, grid: Any) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecipeError(f"rows is {type(rows).__name__} in {path}; it takes a list of mappings of fields")
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise RecipeError(f"grid is {grid!r} in {path}; it takes a list of values for each field, seed: [0, 1]")
    names = [row.get("name") for row in rows]
    if len(rows) > 1 and (None in names or len(set(names)) < len(names)):
        raise RecipeError(f"rows in {path} have the names {names}; give each its own `name`")
    headings = [list(row.get("columns") or {"run": None}) for row in rows]
    if any(heading != headings[0] for heading in headings):
        raise RecipeError(f"rows in {path} have different columns; give all the same headings")


def _difference(value: float | None, reference: float | None) -> str:
    return "" if value is None or reference is None else f"{value - reference:+.1f}"


def _ratio(reference: float | None, value: float | None) -> str:
    return f"{reference / value:.2f}x" if reference and value else "not measured"
