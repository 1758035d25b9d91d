"""Recipe files: flat YAML mappings, with `extends:` and `baseline:`.

extends: baseline.yaml    # path relative to this file; the keys below override it, mappings are replaced whole
baseline: baseline.yaml   # the plain recipe that this one is compared with
lr_schedule: f1_clr
blur_p: [1.0, 0.1]
"""

from pathlib import Path
from typing import Any

import yaml

from hf_essl.config.values import RecipeError, convert

SWEEP_KEYS = ("title", "rows", "grid", "metric", "metric_args", "results", "across", "headings")
"""Keys of a file that describes several runs, see `hf_essl.sweep`."""


def read_file(path: Path, above: tuple[Path, ...] = (), *, sweep: bool = False) -> dict[str, Any]:
    """The converted values of the recipe at `path`, merged over those of the files that it extends.

    Args:
        above: the files that extend this one.
        sweep: accept a file that describes several runs, and leave out what tells them apart.

    Raises:
        RecipeError: for anything wrong with one of the files.
    """
    chain = (*above, path)
    if path.resolve() in {p.resolve() for p in above}:
        raise RecipeError(f"recipes extend each other in a circle: {' -> '.join(p.name for p in chain)}")
    content = read_yaml(path, above)
    grid = {key: content.pop(key) for key in SWEEP_KEYS if key in content}
    if grid and not sweep:
        raise RecipeError(f"recipe {path} holds several runs ({', '.join(grid)}); `hf-essl sweep {path}` runs them")
    base, _ = (pop_path(content, key, path) for key in ("extends", "baseline"))
    values = {} if base is None else read_file(base, chain)
    return merge(values, {key: convert(key, value, str(path)) for key, value in content.items()})


def pop_path(content: dict[str, Any], key: str, where: Path) -> Path | None:
    """Removes the path of another recipe from a mapping. Raises RecipeError for another value than text."""
    value = content.pop(key, None)
    if value is not None and not isinstance(value, str):
        raise RecipeError(f"{key} is {value!r} in {where}; it takes the path of one recipe, relative to this file")
    return None if value is None else where.parent / value


def baseline_of(path: Path) -> Path | None:
    """The `baseline:` of a recipe, or the nearest one among the recipes that it extends.

    None if there is none, and for the baseline itself and recipes that extend it.
    """
    passed: list[Path] = []
    while True:
        content = read_yaml(path)
        base, baseline = (pop_path(content, key, path) for key in ("extends", "baseline"))
        passed.append(path.resolve())
        if baseline is not None:
            return None if baseline.resolve() in passed else baseline
        if base is None or base.resolve() in passed:
            return None
        path = base


def merge(base: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """`delta` over `base`; another dataset drops the configuration of the old one."""
    if "dataset" in delta:
        base = {key: value for key, value in base.items() if key != "dataset_config"}
    return base | delta


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file. Raises RecipeError if there is none, or a key appears twice."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        extended = f", which {above[-1]} extends" if above else ""
        raise RecipeError(f"recipe {path}{extended} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8 text; a recipe is a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise RecipeError(f"recipe {path} is not valid YAML{where}: {problem}") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"recipe {path} is {found}; expected lines of `field: value`, such as `backbone: resnet50`")
    return content


class _Loader(yaml.SafeLoader):
    """YAML where a repeated key is an error; plain YAML silently drops the first value."""

    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
