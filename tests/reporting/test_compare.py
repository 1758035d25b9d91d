"""Comparing runs, against numbers worked out by hand."""

import json

import pytest
from PIL import Image

from hf_essl import cli
from hf_essl.reporting.compare import (
    Group,
    check_evaluation,
    comparison_table,
    draw_comparison,
    load_groups,
    pair_up,
    without_seed,
)
from hf_essl.reporting.metrics import read_metrics
from hf_essl.reporting.recorded import write_results


@pytest.fixture
def runs(tmp_path):
    results = {"plain-seed0": (80.0, 0.02), "plain-seed1": (84.0, 0.02), "fast-seed0": (85.0, 0.01)}
    for name, (accuracy, cost) in results.items():
        (tmp_path / name).mkdir()
        metrics = {"knn_accuracy": accuracy, "petaflops": cost, "train_seconds": 100.0, "measured_speedup": None}
        (tmp_path / name / "metrics.json").write_text(json.dumps({"method": "simsiam", **metrics}))
    return [tmp_path / name for name in results]


def test_seeds_are_averaged_with_their_spread(runs):
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in comparison_table(load_groups(runs)).split("\n")
    ]
    assert rows[0][:3] == ["run", "seeds", "kNN (%)"]
    assert rows[2] == [
        "plain", "2", "82.0 ± 2.8", "not measured", "0.0200", "100", "not measured", "not measured",
        "not measured",
    ]  # fmt: skip
    assert rows[3][:5] == ["fast", "1", "85.0", "not measured", "0.0100"]


def test_accuracies_on_different_crops_are_warned_about(runs, caplog):
    check_evaluation(load_groups(runs))  # of older runs, all on the whole center square
    assert not caplog.text
    metrics = json.loads((runs[0] / "metrics.json").read_text()) | {"crop_pct": 0.875}
    (runs[0] / "metrics.json").write_text(json.dumps(metrics))
    check_evaluation(load_groups(runs))
    assert "not comparable: the runs were evaluated at eval_crop_pct 0.875, 1" in caplog.text


def test_the_command_prints_and_draws(runs, tmp_path, capsys):
    assert cli.main(["compare", *map(str, runs), "--output", str(tmp_path / "c.png")]) == 0
    assert "| plain | 2 |" in capsys.readouterr().out
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > 400


def edit(run, **values):
    metrics = json.loads((run / "metrics.json").read_text()) | values
    (run / "metrics.json").write_text(json.dumps(metrics))


def test_an_unfinished_run_is_left_out_and_named(runs, tmp_path, caplog):
    unfinished = tmp_path / "slow-seed0"
    (unfinished / "checkpoint-10").mkdir(parents=True)
    assert [group.name for group in load_groups([*runs, unfinished])] == ["plain", "fast"]
    assert f"left out: {unfinished} is not a finished run" in caplog.text
    with pytest.raises(ValueError, match="none of the runs has ended"):
        load_groups([unfinished])


def test_runs_of_one_name_with_other_lengths_are_told_apart(runs, caplog):
    edit(runs[0], steps=60)
    edit(runs[1], steps=384)
    groups = load_groups(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("plain (steps 60)", 1), ("plain (steps 384)", 1), ("fast", 1),
    ]  # fmt: skip
    assert "the runs plain differ in steps and are not averaged" in caplog.text


def test_runs_of_one_name_with_other_recipes_are_told_apart(runs):
    for run, rate, seed in zip(runs, (0.1, 0.2, 0.2), (0, 1, 0), strict=True):
        (run / "recipe.yaml").write_text(f"learning_rate: {rate}\nseed: {seed}\noutput_dir: {run.name}\n")
    assert [group.name for group in load_groups(runs)] == [
        "plain (learning_rate 0.1)",
        "plain (learning_rate 0.2)",
        "fast",
    ]
    (runs[1] / "recipe.yaml").write_text("learning_rate: 0.1\nseed: 1\nlogging_steps: 3\n")
    assert [len(group.runs) for group in load_groups(runs)] == [2, 1]


@pytest.mark.parametrize("line", ["bf16: true", "adam_beta2: 0.9", "optim_args: nesterov=True"])
def test_a_field_of_transformers_tells_recipes_apart_too(runs, line):
    (runs[0] / "recipe.yaml").write_text("learning_rate: 0.1\nseed: 0\n")
    (runs[1] / "recipe.yaml").write_text(f"learning_rate: 0.1\nseed: 1\n{line}\n")
    assert [len(group.runs) for group in load_groups(runs)] == [1, 1, 1]


def test_runs_on_other_images_are_refused(runs):
    edit(runs[0], dataset="cats")
    edit(runs[2], dataset="dogs")
    with pytest.raises(ValueError, match="dataset of plain is cats, of fast dogs; compare runs on the same images"):
        load_groups(runs)


def test_without_labels_the_retrieval_is_compared(runs, drawn, tmp_path):
    for run, retrieval in zip(runs, (20.0, 30.0, 40.0), strict=True):
        edit(run, knn_accuracy=None, retrieval=retrieval, random_init_retrieval=5.0)
    rows = comparison_table(load_groups(runs)).split("\n")
    assert rows[0].startswith("| run | seeds | view retrieval (%) | random init (%) | petaFLOPs |")
    assert rows[2].startswith("| plain | 2 | 25.0 ± 7.1 | 5.0 |")
    draw_comparison(load_groups(runs), tmp_path / "c.png")
    assert drawn[0].axes[0].get_ylabel() == "view retrieval (%)"


def test_seeds_have_bars_and_families_their_own_shape(runs, drawn, tmp_path):
    draw_comparison(load_groups(runs), tmp_path / "c.png")
    axis = drawn[0].axes[0]
    (bars,) = axis.containers
    (across, upwards) = (lines.get_segments()[0] for lines in bars.lines[2])
    assert upwards[:, 1] == pytest.approx([82 - 8**0.5, 82 + 8**0.5])  # the standard deviation of 80 and 84
    assert across[:, 0] == pytest.approx([0.02, 0.02])
    named = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(named) == {"plain", "fast"}
    assert named["plain"].get_marker() != named["fast"].get_marker()
    assert named["plain"].get_markerfacecolor() == "white", "the baseline is hollow"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["plain", "fast", "faster"], [("plain", "fast"), ("plain", "faster")]),
        (["a_baseline", "a", "b_baseline", "b_efficient"], [("a_baseline", "a"), ("b_baseline", "b_efficient")]),
        (["b", "a", "a_baseline"], [("a_baseline", "a")]),
    ],
)
def test_baselines_find_their_counterparts_by_name(names, expected):
    groups = [Group(name, ()) for name in names]
    assert [(baseline.name, other.name) for baseline, other in pair_up(groups)] == expected


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path)]) == 2
    assert "is not a finished run" in capsys.readouterr().err


def test_the_results_of_a_sweep_stand_for_its_runs(runs, tmp_path):
    cells = [read_metrics(run) | {"cell": run.name, "columns": {}, "seed": 0} for run in runs]
    path = write_results(tmp_path / "results.json", cells)
    assert comparison_table(load_groups([path])) == comparison_table(load_groups(runs))
    assert [len(group.runs) for group in load_groups([path])] == [2, 1]


@pytest.mark.parametrize(
    ("name", "expected"), [("a-seed0", "a"), ("corn-seeds", "corn-seeds"), ("x-seedless-seed12", "x-seedless")]
)
def test_only_a_seed_at_the_end_is_taken_off_a_name(name, expected):
    assert without_seed(name) == expected
