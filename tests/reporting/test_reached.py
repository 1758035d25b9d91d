"""When a run reaches the accuracy of its baseline, by hand."""

import json

import pytest

from hf_essl.recipe import load_recipe
from hf_essl.reporting.reached import finished_baseline, reached_line
from hf_essl.reporting.report import result_table

COMMON = {"method": "simsiam", "backbone": "net", "dataset": "d", "crop_pct": 1.0, "device": "a CPU", "steps": 100}


def run(**changes):
    """80 s and 8 petaFLOPs: half of the steps take 20 s and 2 petaFLOPs, the other half 60 s and 6."""
    history = [
        {"step": 0, "eval_knn_accuracy": 30.0},
        {"step": 50, "loss": 1.0, "petaflops": 2.0, "train_seconds": 20.0},
        {"step": 50, "eval_knn_accuracy": 40.0},
        {"step": 75, "eval_knn_accuracy": 45.0},
        {"step": 100, "loss": 1.0, "petaflops": 8.0, "train_seconds": 79.0},
        {"step": 100, "eval_knn_accuracy": 50.0},
    ]
    results = {"knn_accuracy": 50.0, "petaflops": 8.0, "train_seconds": 80.0, "history": history}
    return {**COMMON, **results, **changes}


def plain(accuracy):
    return {**COMMON, "knn_accuracy": accuracy, "petaflops": 10.0, "train_seconds": 100.0}


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (40.0, "40.0 %: 2 of 10 petaFLOPs (5.00 x less), 20 of 100 s (5.00 x less)"),
        (41.0, "41.0 %: 5 of 10 petaFLOPs (2.00 x less), 50 of 100 s (2.00 x less)"),
        (50.0, "50.0 %: 8 of 10 petaFLOPs (1.25 x less), 80 of 100 s (1.25 x less)"),
        (25.0, "25.0 %: 2 of 10 petaFLOPs (5.00 x less), 20 of 100 s (5.00 x less)"),  # not before training
        (50.1, "50.1 %: not reached, 50.0 % at the end"),
    ],
)
def test_the_first_evaluation_that_is_as_accurate_counts(accuracy, expected):
    assert reached_line(run(), plain(accuracy)) == f"to the baseline's kNN accuracy, {expected}"


def test_another_machine_compares_operations_only_and_no_labels_nothing():
    assert " s " not in reached_line(run(device="a GPU"), plain(41.0)).split("%:")[1]
    assert reached_line(run(knn_accuracy=None), plain(41.0)) is None


def test_the_report_leads_with_it():
    assert result_table(run(), plain(41.0)).startswith("  to the baseline's kNN accuracy, 41.0 %: 5 of 10 petaFLOPs")
    assert "baseline" not in result_table(run())


def test_the_baseline_is_found_in_its_own_folder_if_it_is_comparable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.yaml").write_text("dataset: d\noutput_dir: runs/plain\n")
    (tmp_path / "fast.yaml").write_text("extends: plain.yaml\nbaseline: plain.yaml\noutput_dir: runs/fast\n")
    fast = load_recipe(tmp_path / "fast.yaml")
    assert finished_baseline(fast, run()) is None, "it has not run"
    (tmp_path / "runs" / "plain").mkdir(parents=True)
    (tmp_path / "runs" / "plain" / "metrics.json").write_text(json.dumps(plain(41.0)))
    assert finished_baseline(fast, run())["knn_accuracy"] == 41.0
    assert finished_baseline(fast, run(dataset="other")) is None
    assert finished_baseline(load_recipe(tmp_path / "plain.yaml"), run()) is None, "it is the baseline"
