"""What the package imports is declared in pyproject.toml, and trackers are imported where they are used."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements):
    return {re.split(r"[<>=!\[ ]", line)[0].lower().replace("_", "-") for line in requirements}


def imported(folder):
    """Top-level modules by whether they are imported at the top of a file."""
    found = {True: set(), False: set()}
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            found[node in tree.body] |= {module.split(".")[0] for module in modules}
    return found


def test_every_import_is_a_declared_dependency():
    found, of = imported(ROOT / "hf_essl"), importlib.metadata.packages_distributions()
    optional = {name for extra in PROJECT["optional-dependencies"].values() for name in names(extra)}
    known = names(PROJECT["dependencies"])
    for at_top in (True, False):
        third_party = found[at_top] - set(sys.stdlib_module_names) - {"hf_essl", "__future__"}
        for module in sorted(third_party):
            distributions = {name.lower().replace("_", "-") for name in of.get(module, [module])}
            assert distributions & (known if at_top else known | optional), f"{module} is not declared"


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "mlflow", "comet_ml", "codecarbon"])
def test_trackers_are_imported_where_they_are_used(tracker):
    assert tracker not in imported(ROOT / "hf_essl")[True]
