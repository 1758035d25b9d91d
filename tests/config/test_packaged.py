"""Recipes by name, from any folder, and in the wheel."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from hf_essl import cli
from hf_essl.config.packaged import costs, find_recipe, packaged
from hf_essl.recipe import RecipeError, load_recipe
from hf_essl.sweep import load_sweep
from tests.recipes.costs import counted

ROOT = Path(__file__).parents[2]


def test_names_are_those_of_the_files():
    expected = {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert set(packaged()) == {name for name in expected if not name.startswith("accelerate/")}
    assert set(packaged("accelerate")) == {"cpu", "fsdp", "multi_gpu", "multi_node", "single_gpu"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("quickstart", "quickstart.yaml"),
        ("recipes/quickstart.yaml", "quickstart.yaml"),
        ("quickstart/byol", "quickstart/byol.yaml"),
        ("byol_resnet50_efficient", "imagenette/byol_resnet50_efficient.yaml"),
        ("imagenet/simsiam_resnet50_efficient", "imagenet/simsiam_resnet50_efficient.yaml"),
    ],
)
def test_a_name_finds_its_file_from_any_folder(name, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == ROOT / "recipes" / file
    assert load_recipe(name, ["--use_cpu"]).source == name


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("extends: other.yaml\n")
    Path("other.yaml").write_text("seed: 7\nuse_cpu: true\n")
    assert load_recipe("quickstart").training.seed == 7


def test_an_unknown_or_ambiguous_name_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RecipeError,
        match=r"no recipe 'quikstart', .*; did you mean quickstart.*\? `hf-essl recipes` lists the recipes",
    ):
        find_recipe("quikstart")
    both = r"did you mean imagenet/simsiam_resnet50_efficient or imagenette/simsiam_resnet50_efficient\?"
    with pytest.raises(RecipeError, match=both):
        find_recipe("simsiam_resnet50_efficient")


def test_sweeps_are_found_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(load_sweep("table2_methods", ["--use_cpu"]).cells) == 10


def test_the_command_lists_and_shows_them(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(packaged()) + 3 and lines[1].split()[0] == "quickstart"
    assert cli.main(["recipes", "dino_resnet50", "Imagenette"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-2]]
    assert names == ["imagenette/dino_resnet50_baseline", "imagenette/dino_resnet50_efficient"]
    assert cli.main(["recipes", "--show", "quickstart"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes" / "quickstart.yaml").read_text()
    assert cli.main(["recipes", "nonsense"]) == 2
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"hf-essl \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_short_names_on_the_command_line():
    words = "--lr 0.3 --epochs 7 --batch-size 32 --data photo-patches --use_cpu".split()
    recipe = load_recipe("quickstart", words)
    training = recipe.training
    assert (training.learning_rate, training.num_train_epochs, training.per_device_train_batch_size) == (0.3, 7, 32)
    assert recipe.data.dataset == "photo-patches"


def test_a_short_name_in_a_recipe_names_the_field(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 0.1\n")
    with pytest.raises(RecipeError, match=r"unknown key 'lr' in .*; did you mean 'learning_rate'"):
        load_recipe(path)


def test_pyproject_lists_every_folder():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    code = {path.parent for path in (ROOT / "hf_essl").rglob("__init__.py")}
    recipes = {ROOT / "recipes", *(path.parent for path in (ROOT / "recipes").rglob("*.yaml"))}
    expected = {".".join(path.relative_to(ROOT).parts) for path in code}
    expected |= {".".join(("hf_essl", *path.relative_to(ROOT).parts)) for path in recipes}
    assert set(listed) == expected


@pytest.mark.slow
def test_the_wheel_holds_the_recipes_and_works_alone(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.relative_to(site / "hf_essl" / "recipes") for path in site.rglob("*.yaml")} == {
        path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")
    }
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        "import hf_essl; from hf_essl.recipe import load_recipe; from hf_essl.commands.launch import find_config; "
        "print(hf_essl.__file__, load_recipe('quickstart/byol', ['--use_cpu']).model.method, find_config('multi_gpu'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, method, config = done.stdout.split()[-3:]
    assert file.startswith(str(site)) and method == "byol" and config.startswith(str(site))


def test_the_list_shows_what_recipes_cost(capsys):
    assert set(costs()) == set(packaged())
    assert cli.main(["recipes", "imagenet/simsiam", "efficient"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = lines[2].split()[:6]  # 5,063 petaFLOPs at 50 TFLOP/s are 101,260 s; at 0.12, 42.2 million s
    assert printed == ["imagenet/simsiam_resnet50_efficient", "1", "5,063", "28", "h", "488"]


@pytest.mark.slow
def test_the_listed_costs_are_those_of_the_recipes():
    found = counted()
    assert found == {name: pytest.approx(facts, rel=1e-3) for name, facts in costs().items()}, (
        "run `python -m tests.recipes.costs`"
    )
