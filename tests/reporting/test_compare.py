"""Comparing runs, against numbers worked out by hand."""

import json

import pytest
from PIL import Image

from hf_essl import cli
from hf_essl.reporting.compare import Group, check_crops, comparison_table, load_groups, pair_up


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
        "plain", "2", "82.0 ± 2.8", "not measured", "0.0200 ± 0.0000", "100 ± 0", "not measured", "not measured",
    ]  # fmt: skip
    assert rows[3][:5] == ["fast", "1", "85.0", "not measured", "0.0100"]


def test_accuracies_on_different_crops_are_warned_about(runs, caplog):
    check_crops(load_groups(runs))  # of older runs, all on the whole center square
    assert not caplog.text
    metrics = json.loads((runs[0] / "metrics.json").read_text()) | {"crop_pct": 0.875}
    (runs[0] / "metrics.json").write_text(json.dumps(metrics))
    check_crops(load_groups(runs))
    assert "not comparable: the runs were evaluated at eval_crop_pct 0.875, 1" in caplog.text


def test_the_command_prints_and_draws(runs, tmp_path, capsys):
    assert cli.main(["compare", *map(str, runs), "--output", str(tmp_path / "c.png")]) == 0
    assert "| plain | 2 |" in capsys.readouterr().out
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > 400


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
