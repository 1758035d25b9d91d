"""Sweeps: which cells a file describes, that they run, resume and print as the paper's tables do."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from hf_essl import cli
from hf_essl.common import Diverged
from hf_essl.recipe import RecipeError, load_recipe
from hf_essl.reporting.sweep_table import cost_at
from hf_essl.sweep import cells_to_price, load_sweep, run_sweep
from hf_essl.sweep_cells import check_finished, load_cells

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


def columns(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def write(cell, **metrics):
    cell.folder.mkdir(parents=True)
    (cell.folder / "metrics.json").write_text(json.dumps(metrics))


def test_finished_cells_are_left_and_a_lost_one_stops_no_other(sweep):
    loaded = load_sweep(sweep)
    cells = loaded.cells[:4]
    write(cells[1], knn_accuracy=1.0)
    checkpoint = cells[2].folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (checkpoint / name).write_text('{"global_step": 3, "max_steps": 9, "log_history": []}')
    trained, reported = [], []

    def train(recipe):
        trained.append((Path(recipe.training.output_dir).name, recipe.training.resume_from_checkpoint))
        if len(trained) == 1:
            raise Diverged("stopped at step 3: the loss is nan")

    run_sweep(replace(loaded, cells=cells), train, reported.append)
    assert trained == [(cells[0].name, None), (cells[2].name, str(checkpoint)), (cells[3].name, None)]
    assert any("the loss is nan" in line for line in reported) and "[2/4]" in reported[2]


def test_recorded_cells_are_finished_and_those_of_another_sweep_are_refused(sweep, tmp_path, capsys):
    for cell, accuracy in zip(load_cells(sweep)[:2], (40.0, 44.0), strict=True):
        write(cell, knn_accuracy=accuracy, petaflops=2.0, history=[{"step": 1}], method="simsiam")
    assert cli.main(["sweep", str(sweep), "--table"]) == 0
    recorded = tmp_path / "recorded.json"
    (tmp_path / "runs" / "results.json").rename(recorded)
    shutil.rmtree(tmp_path / "runs")
    assert "history" not in recorded.read_text()

    loaded, trained = load_sweep(sweep, recorded=[recorded]), []
    run_sweep(loaded, lambda recipe: trained.append(recipe), only=["ca_weight_decay0.1"])
    assert not trained
    assert "42.0 ± 2.8" in loaded.table()
    capsys.readouterr()
    assert cli.main(["sweep", str(sweep), "--table", "--results", str(recorded)]) == 0
    assert "42.0 ± 2.8" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs" / "results.json").read_text()) == json.loads(recorded.read_text())

    for old, new, message in [
        ('"cell": "ca_weight_decay0.1-seed0"', '"cell": "cb"', "of another sweep: cell is 'cb'"),
        (
            '"method": "simsiam"',
            '"method": "byol"',
            r"method of .* is byol, in this sweep it is simsiam",
        ),
        ('"cell"', '"run"', "has no results of a sweep"),
        ("[", "{", "cannot be read as the results of a sweep"),
    ]:
        (tmp_path / "other.json").write_text(recorded.read_text().replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            load_sweep(sweep, recorded=[tmp_path / "other.json"])


def test_the_table_by_hand(sweep):
    loaded = load_sweep(sweep)
    cells = loaded.cells
    results = {
        cells[0].name: (80.0, 2.0, 100.0),
        cells[1].name: (82.0, 2.0, 120.0),
        cells[4].name: (84.0, 1.0, 50.0),
        cells[5].name: (86.0, 1.0, 60.0),
    }
    keys = ("knn_accuracy", "petaflops", "train_seconds")
    for cell in cells:
        if cell.name in results:
            write(cell, **dict(zip(keys, results[cell.name], strict=True)))
    rows = columns(loaded.table())
    assert rows[0][:4] == ["Schedule", "weight_decay", "seeds", "kNN-Acc. (%)"]
    assert rows[2] == ["CA", "0.1", "2", "81.0 ± 1.4", "2", "1.00x", "110 ± 14", "1.00x"]
    assert rows[3] == ["CA", "0.2", "0", "not measured", "not measured", *["not measured"] * 3]
    assert rows[4] == ["F1-CLR", "0.1", "2", "85.0 ± 1.4 (+4.0)", "1", "2.00x", "55 ± 7", "2.00x"]


def test_differences_are_paired_by_seed(tmp_path):
    """Against scipy's tests; of seeds 0 to 3, the second recipe has no 3, so three pairs are left."""
    path = tmp_path / "s.yaml"
    rows = "rows: [{name: a}, {name: b, weight_decay: 0.1}, {name: c, weight_decay: 0.2}]\ngrid: {seed: [0, 1, 2, 3]}"
    path.write_text(
        f"dataset: photo-patches\nuse_cpu: true\noutput_dir: {tmp_path / 'out'}\n{rows}\n"
        f"results: [accuracy, difference, at_least, wallclock_speedup]\n"
    )
    accuracies = {"a": [40.0, 42.0, 41.0, 39.0], "b": [43.0, 43.5, 45.0], "c": [41.0, 43.0, 42.0, 40.0]}
    for cell in load_cells(path):
        name, seed = cell.name.split("-seed")
        if int(seed) < len(accuracies[name]):
            device = "gpu" if name == "c" else "cpu"
            write(cell, knn_accuracy=accuracies[name][int(seed)], train_seconds=9.0, device=device)
    expected = ttest_rel(accuracies["b"], accuracies["a"][:3])
    lower = expected.confidence_interval(0.90).low  # both ends at 5 %
    rows = columns(load_sweep(path).table())
    error = np.std([3.0, 1.5, 4.0], ddof=1) / 3**0.5
    assert [row[2] for row in rows[2:]] == ["40.5 ± 1.3", "43.8 ± 1.0", "41.5 ± 1.3"], "without differences of means"
    rows = [row[:2] + row[3:] for row in rows]
    assert rows[0][2:] == ["difference (points)", "at least (points, 95 %)", "Speedup in wall-clock"]
    assert rows[2][2:] == ["", "", "1.00x"]
    assert rows[3][2:] == [f"+2.8 ± {error:.1f} (p = {expected.pvalue:.2g})", f"{lower:+.1f}", "1.00x"]
    assert rows[4][2:] == ["+1.0 ± 0.0", "+1.0", "not measured"], "equal differences; seconds of another machine"


TABLE_7 = """
across: Schedule
results: {CA: [accuracy], F1-CLR: [accuracy, equal_accuracy]}
headings: {num_train_epochs: Epochs}
backbone: test_resnet
rows:
  - {name: ca, columns: {Schedule: CA}}
  - {name: f1, columns: {Schedule: F1-CLR}, lr_schedule: f1_clr, warmup_epochs: 1}
grid: {num_train_epochs: [10, 20, 40]}
use_cpu: true
output_dir: OUT
"""


def test_speedup_at_equal_accuracy_by_hand(tmp_path):
    """The plain schedule reaches 60, 70, 75 % at 1, 2, 4 pF; F1-CLR's 72.5 % at 2 pF are its accuracy at 3 pF."""
    path = tmp_path / "table7.yaml"
    path.write_text(TABLE_7.replace("OUT", str(tmp_path / "runs")))
    loaded = load_sweep(path)
    accuracies = {"ca": (60.0, 70.0, 75.0), "f1": (65.0, 72.5, 80.0)}
    for cell in loaded.cells:
        name, _, epochs = cell.name.partition("_num_train_epochs")
        length = (10, 20, 40).index(int(epochs))
        write(cell, knn_accuracy=accuracies[name][length], petaflops=float(2**length))
    table = columns(loaded.table())
    assert table[0] == [
        "Epochs", "CA: kNN-Acc. (%)", "F1-CLR: kNN-Acc. (%)", "F1-CLR: Speedup at equal accuracy",
    ]  # fmt: skip
    assert table[2:] == [
        ["10", "60.0", "65.0 (+5.0)", "1.50x"],
        ["20", "70.0", "72.5 (+2.5)", "1.50x"],
        ["40", "75.0", "80.0 (+5.0)", "> 1.00x"],
    ]


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 100)), min_size=2, max_size=6, unique_by=lambda p: p[0]))
def test_cost_at_is_where_numpys_interpolation_has_the_accuracy(curve):
    costs, accuracies = zip(*sorted(curve), strict=True)
    wanted = (min(accuracies) + max(accuracies)) / 2
    found = cost_at(curve, wanted)
    if found is None:  # only a curve that never rises through the wanted accuracy
        assert not any(low <= wanted <= high for low, high in itertools.pairwise(accuracies))
    else:
        assert np.interp(found, costs, accuracies) == pytest.approx(wanted, abs=1e-3 * (1 + abs(wanted)))


def test_rows_of_other_recipes_take_turns_across_the_table(tmp_path):
    """Fields are the row's recipe, the file's, then the row's; speed-ups are over the first group of a line."""
    for name, rate in (("a", 0.01), ("b", 0.02)):
        (tmp_path / f"{name}.yaml").write_text(f"backbone: test_resnet\nlearning_rate: {rate}\nweight_decay: 0.3\n")
    path = tmp_path / "table.yaml"
    path.write_text(
        f"""
across: Recipe
results: {{Plain: [accuracy, paper_petaflops], Efficient: [accuracy, speedup]}}
rows:
  - {{name: ap, columns: {{Model: A, Recipe: Plain}}, extends: a.yaml}}
  - {{name: ae, columns: {{Model: A, Recipe: Efficient}}, extends: a.yaml, weight_decay: 0.4}}
  - {{name: bp, columns: {{Model: B, Recipe: Plain}}, extends: b.yaml}}
weight_decay: 0.1
use_cpu: true
output_dir: {tmp_path / "runs"}
"""
    )
    loaded = load_sweep(path)
    training = [cell.recipe.training for cell in loaded.cells]
    assert [(t.learning_rate, t.weight_decay) for t in training] == [(0.01, 0.1), (0.01, 0.4), (0.02, 0.1)]
    for cell, petaflops in zip(loaded.cells, (3.0, 2.0, 8.0), strict=True):
        write(cell, knn_accuracy=50.0, petaflops=petaflops, petaflops_paper_convention=petaflops / 2)
    assert columns(loaded.table())[2:] == [["A", "50.0", "1.5", "50.0 (+0.0)", "1.50x"], ["B", "50.0", "4", "", ""]]
    assert [priced.baseline[0] for priced in cells_to_price([str(path)])] == ["ap", "ap", "bp"]


def test_the_metric_names_where_the_accuracy_comes_from(sweep):
    sweep.write_text("metric: linear\nmetric_args: {epochs: 5}\n" + sweep.read_text())
    loaded = load_sweep(sweep)
    cell = loaded.cells[0]
    write(cell, knn_accuracy=80.0, petaflops=1.0, train_seconds=1.0)
    assert loaded.finished(cell)["accuracy"] is None and loaded.metric.is_missing(cell.folder)
    settings = {"epochs": 5, "learning_rate": loaded.metric.settings.learning_rate, "augment": False}
    other_images = {"accuracy": 12.3, "dataset": "other", **settings}  # as `hf-essl evaluate --output` writes it
    (cell.folder / "linear.json").write_text(json.dumps(other_images))
    assert loaded.finished(cell)["accuracy"] is None and loaded.metric.is_missing(cell.folder)
    (cell.folder / "linear.json").write_text(json.dumps({"accuracy": 70.0, "metric_args": settings}))
    assert loaded.finished(cell)["accuracy"] == 70.0 and not loaded.metric.is_missing(cell.folder)
    assert "Linear acc. (%)" in loaded.table()
    other = load_sweep(sweep, metric="linear", metric_args={"epochs": 6})
    assert other.metric.is_missing(cell.folder), "the accuracy of other settings is not shown"
    assert load_sweep(sweep, metric="knn").finished(cell)["accuracy"] == 80.0


def test_a_finished_run_without_its_metric_is_evaluated_and_not_trained(sweep, monkeypatch):
    sweep.write_text("metric: linear\n" + sweep.read_text())
    loaded = load_sweep(sweep)
    write(loaded.cells[0], knn_accuracy=1.0)
    measured, trained, reported = [], [], []
    monkeypatch.setattr(type(loaded.metric), "measure", lambda self, recipe, report: measured.append(recipe))
    run_sweep(replace(loaded, cells=loaded.cells[:2]), trained.append, reported.append)
    assert measured == [cell.recipe for cell in loaded.cells[:2]] and trained == [loaded.cells[1].recipe]
    assert reported[0].endswith("evaluated") and reported[1].endswith("started")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("metric: lineer", r"metric is 'lineer'; choose one of .*; did you mean 'linear'"),
        ("metric: online_probe", r"metric is online_probe in .*, which trains none; set online_probe: true"),
        ("metric: linear\nmetric_args: {k: 3}", r"k is a setting of knn, not of linear"),
        ("metric_args: {k: 3}", r"metric_args is \{'k': 3\} with metric: knn, which is measured during the training"),
        ("results: [accuracy, speed]", r"results is 'speed'; choose one of .*; did you mean 'speedup'"),
        ("results: [[accuracy]]", r"results is \[\['accuracy'\]\] in .*; expected a list of accuracy, "),
        ("metric: [knn]", r"metric is \"\['knn'\]\"; choose one of"),
        ("metric: linear\nmetric_args: [3]", r"metric_args is \[3\] in .*; expected settings and values"),
        ("results: accuracy", r"results is 'accuracy' in .*; expected a list of accuracy, "),
        ("across: Shedule", r"across is 'Shedule'; choose one of Schedule, weight_decay"),
        ("across: Schedule\nresults: {CA: [accuracy]}", r"results is .*, or one for each of CA, F1-CLR"),
    ],
)
def test_mistakes_in_what_the_table_shows_are_one_line(sweep, line, message):
    sweep.write_text(line + "\n" + sweep.read_text())
    with pytest.raises(RecipeError, match=message) as error:
        load_sweep(sweep)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: f1", "name: ca"), r"rows in .* have the names \['ca', 'ca'\]; give each row its own `name`"),
        (("name: f1", "name: [f1]"), r"name is \"\['f1'\]\" in .*; it is a folder"),
        (("warmup_epochs: 1", "weight_decay: 1"), r"weight_decay is given by row f1 and by grid in .*; give it once"),
        (("warmup_epochs: 1", "output_dir: x"), r"output_dir is given by row f1 in .*; give one for all"),
        (("weight_decay: [", "output_dir: ["), r"output_dir is given by grid in .*; give one for all"),
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
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert all(result["accuracy"] == result["knn_accuracy"] and "history" not in result for result in results)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{name: ..}", "it is a folder"),
        ("{name: ../x}", "it is a folder"),
        ("{name: .hidden}", "it is a folder"),
        ("{name: {a: 1}}", "it is a folder"),
        ("{name: a, columns: 3}", "each is a mapping of headings"),
    ],
)
def test_a_row_cannot_leave_the_folder_of_its_sweep(row, message, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"extends: {ROOT / 'recipes' / 'quickstart.yaml'}\nuse_cpu: true\nrows: [{row}]\n")
    with pytest.raises(RecipeError, match=message):
        load_sweep(path)


@pytest.mark.parametrize(
    ("lines", "words", "message"),
    [
        ("grid: {seed: [0, 0]}", [], "two runs in .* have the name seed0|two runs in .* have the name .*-seed0"),
        ("grid: {seed: [0, 1]}", ["--seed", "7"], "seed is given on the command line and by grid"),
        (
            "rows: [{name: a, seed: 3}]",
            ["--seed", "7"],
            "seed is given on the command line and by row a in .*; run a sweep without it there",
        ),
        ("grid: {seed: [0]}\nheadings: [a]", [], r"headings is \['a'\] in .*; across is a heading"),
        ("grid: {seed: [0]}\nacross: [seed]", [], r"across is \['seed'\] in .*; across is a heading"),
    ],
)
def test_a_sweep_that_would_count_runs_twice_or_has_odd_parts_is_one_line(tmp_path, lines, words, message):
    path = tmp_path / "s.yaml"
    path.write_text(f"dataset: photo-patches\nuse_cpu: true\noutput_dir: {tmp_path / 'out'}\n{lines}\n")
    with pytest.raises(RecipeError, match=message) as error:
        load_sweep(path, words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--weight_decay", "0.3"], "weight_decay"),
        (["--method_args", "{predictor_hidden: 64}"], "method_args"),
        (["--per_device_train_batch_size", "16"], "images_per_step 128"),
        (["--gradient_accumulation_steps", "4"], "images_per_step 128"),
        (["--total_batch_size", "512"], "images_per_step 128"),
    ],
)
def test_a_finished_run_with_other_settings_does_not_count(tmp_path, words, field):
    path = tmp_path / "s.yaml"
    path.write_text(f"dataset: photo-patches\nuse_cpu: true\noutput_dir: {tmp_path / 'out'}\ngrid: {{seed: [0, 1]}}\n")
    for cell in load_cells(path):
        write(cell, knn_accuracy=1.0)
        (cell.folder / "recipe.yaml").write_text(cell.recipe.to_yaml())
    check_finished(load_cells(path, ["--logging_steps", "7"]))  # decides nothing about the result
    check_finished(load_cells(path, ["--batch_size", "64", "--gradient_accumulation_steps", "2"]))  # 128 images too
    loaded = load_sweep(path, words)
    with pytest.raises(RecipeError, match=rf"holds a finished run with {field}\b.*, in this sweep it is") as error:
        run_sweep(loaded, lambda recipe: pytest.fail("trained"))
    assert "\n" not in str(error.value)


def test_the_command_of_a_cell_runs_this_cell_again(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"dataset: photo-patches\nuse_cpu: true\noutput_dir: {tmp_path / 'out'}\ngrid: {{seed: [0, 1]}}\n")
    cell = load_sweep(path, ["--weight_decay", "0.1"]).cells[1]
    assert cell.recipe.command() == "hf-essl sweep s.yaml --weight_decay 0.1 --only run-seed1"
