"""A sweep: one file that describes several runs, such as a table of the paper.

    title: "Table 5: warm-up of F1-CLR"
    extends: ../imagenette/simsiam_resnet50_efficient.yaml
    rows:                                   # named sets of fields; `columns` are their cells in the table
      - {name: cosine, columns: {LR schedule: CA}, lr_schedule: cosine, warmup_epochs: 0}
    grid: {warmup_epochs: [40, 80], seed: [0, 1]}   # every combination, for every row; seeds are averaged

Each cell is a run in its own folder under `output_dir`. A finished one is skipped, an interrupted one is resumed.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_essl.common import Diverged, table
from hf_essl.config.files import SWEEP_KEYS, read_yaml
from hf_essl.config.values import RecipeError
from hf_essl.recipe import Recipe, load_recipe
from hf_essl.reporting.compare import Group, without_seed
from hf_essl.run_folder import last_complete_checkpoint


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    columns: dict[str, str]  # what distinguishes it from other runs except the seed, by the table's headings
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return self.recipe.training.folder


def load_cells(path: str | Path, overrides: Sequence[str] = ()) -> list[Cell]:
    """The runs that a file describes; a single one for a plain recipe.

    Raises RecipeError for a mistake in the file, in any of its cells, or in the overrides.
    """
    content = read_yaml(Path(path))
    if not any(key in content for key in SWEEP_KEYS):
        return [Cell(Path(path).stem, {}, load_recipe(path, overrides))]
    rows, grid = content.get("rows") or [{}], content.get("grid") or {}
    _check(path, rows, grid)
    base = load_recipe(path, overrides, cell={}).training.folder
    cells = []
    for row, values in itertools.product(rows, itertools.product(*grid.values())):
        chosen = dict(zip(grid, values, strict=True))
        fields = {key: value for key, value in row.items() if key not in ("name", "columns")} | chosen
        name = _name(row, chosen)
        shown = (row.get("columns") or ({"run": row["name"]} if "name" in row else {})) | chosen
        columns = {str(key): str(value) for key, value in shown.items() if key != "seed"}
        recipe = load_recipe(path, [*overrides, "--output_dir", f"{base}/{name}"], cell=fields)
        cells.append(Cell(name, columns, recipe))
    return cells


def run_sweep(cells: Sequence[Cell], train: Callable[[Recipe], Any], report: Callable[[str], None] = print) -> None:
    """Runs the unfinished cells in order; if one diverges, it is reported and the next one runs.

    Args:
        train: `hf_essl.pretrain.pretrain`.

    Raises ValueError for a network that cannot work in one of the cells, before the first one runs.
    """
    for cell in cells:
        cell.recipe.check_network()
    for number, cell in enumerate(cells, 1):
        training = cell.recipe.training
        try:
            checkpoint = last_complete_checkpoint(cell.folder)
        except ValueError:
            checkpoint = None
        finished = (cell.folder / "metrics.json").exists()
        state = "finished" if finished else "resumed" if checkpoint else "started"
        report(f"\n[{number}/{len(cells)}] {cell.name}: {state}")
        if finished:
            continue
        training.resume_from_checkpoint = checkpoint
        training.overwrite_output_dir = checkpoint is None  # of a run that stopped before its first checkpoint
        try:
            train(cell.recipe)
        except Diverged as error:
            report(f"{cell.name}: {error}")


def sweep_table(cells: Sequence[Cell], finished: Mapping[str, dict]) -> str:
    """A Markdown table: what varies, accuracy, cost, and speed-ups over the first row; means and spread over seeds.

    Args:
        finished: the content of `metrics.json` of the finished cells, by name.
    """
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(without_seed(cell.name), []).append(cell)
    groups = [Group(name, tuple(finished[c.name] for c in row if c.name in finished)) for name, row in rows.items()]
    first, columns = groups[0], cells[0].columns
    header = [*columns, "seeds", "kNN-Acc. (%)", "petaFLOPs", "Speedup", "training (s)", "Speedup in wall-clock"]
    lines = []
    for group, row in zip(groups, rows.values(), strict=True):
        accuracy, petaflops = group.show("knn_accuracy", ".1f"), group.mean("petaflops")
        ours, baseline = group.mean("knn_accuracy"), first.mean("knn_accuracy")
        if group is not first and ours is not None and baseline is not None:
            accuracy += f" ({ours - baseline:+.1f})"
        line = [*row[0].columns.values(), str(len(group.runs)), accuracy]
        line += ["not measured" if petaflops is None else f"{petaflops:.4g}", _speedup(first, group, "petaflops")]
        line += [group.show("train_seconds", ".0f"), _speedup(first, group, "train_seconds")]
        lines.append(line)
    return table(header, lines)


def _speedup(first: Group, group: Group, key: str) -> str:
    reference, value = first.mean(key), group.mean(key)
    return f"{reference / value:.2f}x" if reference and value else "not measured"


def _name(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    varied = [f"{key}{value}" for key, value in chosen.items() if key != "seed"]
    name = "_".join([*([str(row["name"])] if "name" in row else []), *varied]) or "run"
    seed = f"-seed{chosen['seed']}" if "seed" in chosen else ""
    return re.sub(r"[^\w.+-]+", "-", name) + seed


def _check(path: str | Path, rows: Any, grid: Any) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecipeError(f"rows is {type(rows).__name__} in {path}; expected a list of mappings of fields")
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise RecipeError(
            f"grid is {grid!r} in {path}; expected a list of values for each field, such as seed: [0, 1]"
        )
    names = [row.get("name") for row in rows]
    if len(rows) > 1 and (None in names or len(set(names)) < len(names)):
        raise RecipeError(f"rows in {path} have the names {names}; give each row its own `name`")
    headings = [list(row.get("columns") or {"run": None}) for row in rows]
    if any(heading != headings[0] for heading in headings):
        raise RecipeError(f"rows in {path} have different columns; give all rows the same headings")
