"""The cells of a sweep file: every row meets every combination of its grid, each in a folder of its own."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_essl.config.files import SWEEP_KEYS, merge, pop_path, read_file, read_yaml
from hf_essl.config.packaged import find_recipe
from hf_essl.config.resume import IMAGES, differences, value_of
from hf_essl.config.values import RecipeError, parse_overrides
from hf_essl.recipe import Recipe, load_recipe, read_recipe
from hf_essl.reporting.recorded import PLAIN
from hf_essl.run_folder import METRICS, RECIPE


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    columns: dict[str, str]  # what distinguishes it from other runs except the seed, by the table's headings
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return self.recipe.training.folder

    @property
    def strategies(self) -> dict[str, str]:
        """The settings that tell a plain recipe from the others."""
        views, training = self.recipe.views, self.recipe.training
        return {key: str(getattr(views, key, None) or getattr(training, key)) for key in PLAIN}


def load_cells(path: str | Path, overrides: Sequence[str] = ()) -> list[Cell]:
    """The runs that a file describes; a single one for a plain recipe. Raises RecipeError as `load_sweep` does."""
    content = read_yaml(find_recipe(path))
    if not any(key in content for key in SWEEP_KEYS):
        return [Cell(Path(path).stem, {}, load_recipe(path, overrides))]
    rows, grid = content.get("rows") or [{}], content.get("grid") or {}
    _check(path, rows, grid)
    _check_given_once(path, rows, grid, parse_overrides(overrides))
    base = load_recipe(path, overrides, cell={}).training.folder
    cells: list[Cell] = []
    for row, values in itertools.product(rows, itertools.product(*grid.values())):
        chosen = dict(zip(grid, values, strict=True))
        name = _name(row, chosen)
        shown = (row.get("columns") or ({"run": row["name"]} if "name" in row else {})) | chosen
        columns = {str(key): str(value) for key, value in shown.items() if key != "seed"}
        if name in [cell.name for cell in cells]:
            raise RecipeError(
                f"two runs in {path} have the name {name}; give each value in grid once, or name the rows"
            )
        words = [*overrides, "--output_dir", f"{base}/{name}"]
        recipe = load_recipe(path, words, cell=_fields(path, row) | chosen)
        again = ("sweep", str(path), *overrides, "--only", name)
        cells.append(Cell(name, columns, replace(recipe, words=again)))
    return cells


def _fields(path: str | Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row; over those of a recipe that it extends are those of the file, then its own."""
    own = {key: value for key, value in row.items() if key not in ("name", "columns")}
    file = find_recipe(path)
    base = pop_path(own, "extends", file)
    return own if base is None else merge(merge(read_file(base), read_file(file, sweep=True)), own)


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
    names = [None if row.get("name") is None else str(row["name"]) for row in rows]
    if wrong := [name for name in names if name is not None and not re.fullmatch(r"[^\W_][\w.+-]*", name)]:
        raise RecipeError(f"name is {wrong[0]!r} in {path}; it is a folder: letters, digits, . _ + and -")
    if len(rows) > 1 and (None in names or len(set(names)) < len(names)):
        raise RecipeError(f"rows in {path} have the names {names}; give each row its own `name`")
    columns = [row.get("columns") for row in rows]
    if any(not isinstance(value, dict) for value in columns if value is not None):
        raise RecipeError(f"columns are {columns} in {path}; each is a mapping of headings to cells, such as {{m: 4}}")
    headings = [list(row.get("columns") or {"run": None}) for row in rows]
    if any(heading != headings[0] for heading in headings):
        raise RecipeError(f"rows in {path} have different columns; give all rows the same headings")


def _check_given_once(
    path: str | Path, rows: Sequence[Mapping[str, Any]], grid: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Raises RecipeError for a field that one cell is given twice: the table may show a value that it did not use."""
    for row in rows:
        where = f"row {row['name']}" if "name" in row else "a row"
        owners = dict.fromkeys(row, where) | dict.fromkeys(grid, "grid")
        if "output_dir" in owners:
            owner = owners["output_dir"]
            raise RecipeError(
                f"output_dir is given by {owner} in {path}; give one for all, each cell has a folder in it"
            )
        if twice := [key for key in row if key in grid]:
            raise RecipeError(f"{twice[0]} is given by {where} and by grid in {path}; give it once")
        if twice := [key for key in overrides if key in owners]:
            raise RecipeError(
                f"{twice[0]} is given on the command line and by {owners[twice[0]]} in {path}; run a sweep without it "
                f"there"
            )


def check_finished(cells: Sequence[Cell]) -> None:
    """Raises RecipeError if the folder of a cell holds a finished run with other settings, which would count as it."""
    for cell in cells:
        if not (cell.folder / METRICS).is_file() or not (cell.folder / RECIPE).is_file():
            continue
        ran, wanted = read_recipe(cell.folder / RECIPE).given, cell.recipe.given
        for key, _, old, new in differences(ran | {IMAGES: _batch(ran)}, wanted | {IMAGES: _batch(wanted)}):
            raise RecipeError(
                f"{cell.folder} holds a finished run with {key} {old!r}, in this sweep it is {new!r}; choose another "
                f"--output_dir, or delete that folder to run the cell again"
            )


def _batch(given: Mapping[str, Any]) -> int:
    """Images of an optimizer step, of one process or of all."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    return value_of(given, "total_batch_size") or math.prod(int(value_of(given, name)) for name in names)
