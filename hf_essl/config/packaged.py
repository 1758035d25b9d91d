"""The recipes that come with the package, found by name from any folder, such as `quickstart/byol`."""

import json
from pathlib import Path

from hf_essl.common import nearest
from hf_essl.config.values import RecipeError

INSTALLED = Path(__file__).parents[1] / "recipes"  # in a wheel
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "recipes"
COSTS = FOLDER / "costs.json"  # by `python -m tests.recipes.costs`; counting takes a minute
LAUNCH = "accelerate"  # the folder of launch configurations, which are no recipes


def packaged(folder: str = "") -> dict[str, Path]:
    """The packaged YAML files by name, without the launch configurations or only those in a folder."""
    found = sorted((FOLDER / folder).rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    names = {path.relative_to(FOLDER / folder).with_suffix("").as_posix(): path for path in found}
    return names if folder else {name: path for name, path in names.items() if not name.startswith(f"{LAUNCH}/")}


def find_recipe(name: str | Path) -> Path:
    """The recipe at this path or, if there is no such file, the packaged one with this name.

    The last part of a name is enough where it is unique. Raises RecipeError, with the nearest names, if there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = packaged()
    wanted = path.with_suffix("").as_posix() if path.suffix in (".yaml", ".yml") else path.as_posix()
    wanted = wanted.removeprefix("recipes/")
    if wanted in known:
        return known[wanted]
    alike = [full for full in known if full.endswith(f"/{wanted}")]
    if len(alike) == 1:
        return known[alike[0]]
    if not alike and (path.exists() or path.is_absolute()):
        return path  # reading it says what is wrong
    alike = alike or nearest(wanted, known, count=3)
    hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
    raise RecipeError(
        f"there is no recipe {str(name)!r}, as a file or in the package, and no such folder of images{hint or ';'} "
        f"`hf-essl recipes` lists the recipes"
    )


def costs() -> dict[str, dict[str, float]]:
    """`runs` and counted `petaflops` of the packaged recipes and sweeps, by name."""
    return json.loads(COSTS.read_text(encoding="utf-8"))


def first_line(path: Path) -> str:
    """The title of a recipe: the first line of its header."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
