"""Sweeps: which cells a file describes, that they run, resume and print as the paper's tables do."""

import json
from pathlib import Path

import pytest

from hf_essl import cli
from hf_essl.common import Diverged
from hf_essl.recipe import RecipeError, load_recipe
from hf_essl.sweep import load_cells, run_sweep, sweep_table

ROOT = Path(__file__).parents[1]
SWEEP = """
title: "A table"
backbone: test_resnet
rows:
  - {name: ca, columns: {Schedule: CA}}
  - {name: f1, columns: {Schedule: F1-CLR}, lr_schedule: f1_clr, warmup_epochs: 1}
grid: {weight_decay: [0.1, 0.2], seed: [0, 1]}
use_cpu: true
output_dir: OUT
"""


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.replace("OUT", str(tmp_path / "runs")))
    return path


def test_every_row_meets_every_combination_of_the_grid(sweep):
    cells = load_cells(sweep)
    assert [cell.name for cell in cells[:4]] == [
        "ca_weight_decay0.1-seed0",
        "ca_weight_decay0.1-seed1",
        "ca_weight_decay0.2-seed0",
        "ca_weight_decay0.2-seed1",
    ]
    assert len(cells) == 8 and len({cell.folder for cell in cells}) == 8
    last = cells[-1]
    assert last.columns == {"Schedule": "F1-CLR", "weight_decay": "0.2"}
    assert (last.recipe.training.lr_schedule, last.recipe.training.weight_decay) == ("f1_clr", 0.2)
    assert last.recipe.training.seed == 1 and last.folder.parent.name == "runs"


def test_overrides_reach_every_cell(sweep, tmp_path):
    cells = load_cells(sweep, ["--knn_k", "3", "--output_dir", str(tmp_path / "elsewhere")])
    assert {cell.recipe.training.knn_k for cell in cells} == {3}
    assert {cell.folder.parent.name for cell in cells} == {"elsewhere"}


def test_a_plain_recipe_is_one_cell_and_a_sweep_is_no_recipe(sweep):
    (cell,) = load_cells(ROOT / "recipes" / "quickstart.yaml", ["--use_cpu"])
    assert cell.name == "quickstart" and cell.columns == {}
    with pytest.raises(RecipeError, match=r"holds several runs \(title, rows, grid\); `hf-essl sweep .*` runs them"):
        load_recipe(sweep)


def write(cell, **metrics):
    cell.folder.mkdir(parents=True)
    (cell.folder / "metrics.json").write_text(json.dumps(metrics))


def test_finished_cells_are_left_and_a_lost_one_stops_no_other(sweep):
    cells = load_cells(sweep)[:4]
    write(cells[1], knn_accuracy=1.0)
    checkpoint = cells[2].folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (checkpoint / name).write_text("{}")
    trained, reported = [], []

    def train(recipe):
        trained.append((Path(recipe.training.output_dir).name, recipe.training.resume_from_checkpoint))
        if len(trained) == 1:
            raise Diverged("stopped at step 3: the loss is nan")

    run_sweep(cells, train, reported.append)
    assert trained == [(cells[0].name, None), (cells[2].name, str(checkpoint)), (cells[3].name, None)]
    assert any("the loss is nan" in line for line in reported) and "[2/4]" in reported[2]


def test_the_table_by_hand(sweep):
    cells = load_cells(sweep)
    results = {
        cells[0].name: (80.0, 2.0, 100.0),
        cells[1].name: (82.0, 2.0, 120.0),
        cells[4].name: (84.0, 1.0, 50.0),
        cells[5].name: (86.0, 1.0, 60.0),
    }
    keys = ("knn_accuracy", "petaflops", "train_seconds")
    finished = {name: dict(zip(keys, values, strict=True)) for name, values in results.items()}
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in sweep_table(cells, finished).splitlines()]
    assert rows[0][:4] == ["Schedule", "weight_decay", "seeds", "kNN-Acc. (%)"]
    assert rows[2] == ["CA", "0.1", "2", "81.0 ± 1.4", "2", "1.00x", "110 ± 14", "1.00x"]
    assert rows[3] == ["CA", "0.2", "0", "not measured", "not measured", *["not measured"] * 3]
    assert rows[4] == ["F1-CLR", "0.1", "2", "85.0 ± 1.4 (+4.0)", "1", "2.00x", "55 ± 7", "2.00x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: f1", "name: ca"), r"rows in .* have the names \['ca', 'ca'\]; give each row its own `name`"),
        (("[0.1, 0.2]", "0.1"), r"grid is .*; expected a list of values for each field"),
        (("{Schedule: F1-CLR}", "{LR: F1-CLR}"), r"rows in .* have different columns"),
        (("weight_decay: [", "weight_decya: ["), r"unknown key 'weight_decya' in .*; did you mean 'weight_decay'"),
        (("warmup_epochs: 1", "warmup_epochs: 999"), r"warmup_epochs is 999, not shorter than num_train_epochs"),
    ],
)
def test_mistakes_are_one_line_before_any_run(sweep, change, message):
    sweep.write_text(sweep.read_text().replace(*change))
    with pytest.raises(RecipeError, match=message) as error:
        load_cells(sweep)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_runs_resumes_and_prints(tmp_path, capsys):
    path = tmp_path / "two.yaml"
    path.write_text(
        f"""
extends: {ROOT / "recipes" / "quickstart_baseline.yaml"}
max_steps: 2
max_train_samples: 64
max_eval_samples: 16
per_device_train_batch_size: 16
knn_k: 3
measure_speedup: false
disable_tqdm: true
use_cpu: true
grid: {{learning_rate: [0.01, 0.1]}}
output_dir: {tmp_path / "runs"}
"""
    )
    assert cli.main(["sweep", str(path)]) == 0
    first = capsys.readouterr().out
    assert first.count("started") == 2 and "| learning_rate | seeds |" in first
    assert cli.main(["sweep", str(path)]) == 0
    again = capsys.readouterr().out
    assert again.count("finished") == 2
    assert (tmp_path / "runs" / "table.md").read_text() in first + "\n" and "| 0.1 | 1 |" in again
