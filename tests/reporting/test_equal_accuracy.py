"""The ratio of costs at equal accuracy, on runs whose ratio is known."""

import json
import math

import numpy as np
import pytest

from hf_essl import cli
from hf_essl.reporting.compare import load_groups
from hf_essl.reporting.equal_accuracy import (
    Curve,
    draw_equal_accuracy,
    equal_accuracy_table,
    pairs_at_equal_accuracy,
    ratio_at,
)

LENGTHS = (1, 2, 4, 8, 16)


def arm(slope, offset, bend=0.0, seeds=3, noise=0.0, costs=LENGTHS, random=None):
    """Accuracies of offset + slope · log2(cost) − bend · log2(cost)², with normal noise."""
    logs = np.log2(costs)
    means = offset + slope * logs - bend * logs**2
    random = random or np.random.default_rng(0)
    return [
        np.stack([np.full(seeds, cost), mean + noise * random.standard_normal(seeds)], axis=1)
        for cost, mean in zip(costs, means, strict=True)
    ]


@pytest.mark.parametrize("bend", [0.0, 0.4])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_a_recipe_that_does_the_same_at_a_share_of_the_cost_has_this_ratio(bend, factor):
    plain, cheaper = arm(5, 40, bend), [runs / [factor, 1] for runs in arm(5, 40, bend)]
    ratio = ratio_at(plain, cheaper, 2)
    assert ratio.value == pytest.approx(factor, rel=1e-3)
    assert ratio.interval == pytest.approx((factor, factor), rel=1e-3), "the seeds do not differ"
    assert ratio.accuracy == pytest.approx(50 - 4 * bend)


def test_two_lines_by_hand():
    plain, other = arm(4, 40, costs=(1, 4)), arm(4, 42, costs=(1, 4))
    assert ratio_at(plain, other, 1).value == pytest.approx(4 / 2**1.5)  # 48 % = 42 + 4 · 1.5


def test_an_accuracy_outside_of_the_measured_lengths_has_a_bound_only():
    never = ratio_at(arm(5, 40), arm(5, 30, costs=(1, 2)), 4)
    assert never.value == 0 and str(never) == "< 8.00 (< 8.00 to < 8.00)"
    at_once = ratio_at(arm(5, 40), arm(5, 50, costs=(1, 2)), 1)
    assert math.isinf(at_once.value) and str(at_once) == "> 2.00 (> 2.00 to > 2.00)"


def test_one_seed_has_no_interval():
    assert ratio_at(arm(5, 40, seeds=1), arm(5, 40, seeds=3), 2).interval is None


def test_one_seed_of_the_longest_run_borrows_the_spread_of_the_others():
    plain, other = (arm(5, 40, noise=1, random=np.random.default_rng(seed)) for seed in (1, 2))
    low, high = ratio_at([*plain[:-1], plain[-1][:1]], other, 4).interval
    assert low < high


def test_a_recipe_is_not_ahead_of_itself_where_it_no_longer_improves():
    accuracies = (38, 46, 50, 50.2, 49.5)
    plain = [np.array([[cost, value]]) for cost, value in zip(LENGTHS, accuracies, strict=True)]
    assert [ratio_at(plain, plain, length).value for length in range(5)] == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says(monkeypatch, seeds):
    monkeypatch.setattr("hf_essl.reporting.equal_accuracy.RESAMPLES", 200)
    random, covered = np.random.default_rng(1), 0
    for _ in range(60):
        plain, other = (arm(5, 40, noise=1, seeds=seeds, random=random) for _ in range(2))
        low, high = ratio_at(plain, [runs / [2, 1] for runs in other], 2).interval
        covered += low <= 2 <= high
    assert 52 <= covered <= 60, "95 % of 60 are 57"


def test_the_curve_does_not_fall_back_after_its_peak():
    curve = Curve.fit(arm(5, 40, bend=1.0))  # peaks at log2 = 2.5 with 46.25 %
    assert curve.cost_of(46) == pytest.approx(4, rel=2e-3), "the first of the two costs with 46 %"
    assert math.isinf(curve.cost_of(46.5))


@pytest.fixture
def runs(tmp_path):
    """Plain and efficient runs, two seeds; the efficient ones need half the cost and a quarter of the seconds."""
    for name, faster, quicker in (("plain", 1, 1), ("fast", 2, 4)):
        for cost in LENGTHS:
            for seed in (0, 1):
                folder = tmp_path / f"{name}_{cost}-seed{seed}"
                folder.mkdir()
                metrics = {
                    "method": "simsiam", "backbone": "net", "knn_accuracy": 40 + 3 * math.log2(cost),
                    "petaflops": cost / faster, "train_seconds": 60 * cost / quicker,
                }  # fmt: skip
                (folder / "metrics.json").write_text(json.dumps(metrics))
    return sorted(tmp_path.iterdir(), key=lambda folder: (folder.name.startswith("fast"), folder.name))


def test_the_command_compares_lengths_of_recipes_at_equal_accuracy(runs, tmp_path, capsys):
    assert cli.main(["compare", *map(str, runs), "--output", str(tmp_path / "c.png")]) == 0
    printed = capsys.readouterr().out
    assert "| fast | plain | 52.0 | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) |" in printed
    assert "| plain_16 | 2 | 52.0 | not measured | 16.0000 | 960 |" in printed, "equal values have no spread"
    assert [path.name for path in tmp_path.glob("*.png")] == ["c.png"], "one picture shows all runs"
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_runs_of_one_length_have_a_picture_of_their_own(runs, tmp_path, capsys):
    single = tmp_path / "single"
    single.mkdir()
    metrics = {"method": "byol", "backbone": "net", "knn_accuracy": 50.0, "petaflops": 3.0}
    (single / "metrics.json").write_text(json.dumps(metrics))
    assert cli.main(["compare", *map(str, runs), str(single), "--output", str(tmp_path / "c.png")]) == 0
    assert "| fast | plain | 52.0 | 2.00 (2.00 to 2.00) |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} == {"c.png", "c_at_equal_accuracy.png"}
    assert (tmp_path / "c_at_equal_accuracy.png").stat().st_size > 10_000


def test_recipes_tell_the_lengths_of_one_recipe_whatever_their_names(runs):
    """Here they differ in the warm-up with the length; the plain one comes last and is found by its settings."""
    for run in runs:
        fast, cost = run.name.startswith("fast"), run.name.split("_")[1].split("-")[0]
        schedule = "f1_clr" if fast else "cosine"
        (run / "recipe.yaml").write_text(f"lr_schedule: {schedule}\nwarmup_epochs: {int(cost) if fast else 0}\n")
    ((plain, other),) = pairs_at_equal_accuracy(load_groups(runs[::-1]))
    assert (plain.name, other.name, len(plain.lengths), len(other.lengths)) == ("plain", "fast", 5, 5)


def test_runs_of_one_length_are_not_compared(runs):
    assert not pairs_at_equal_accuracy(load_groups([run for run in runs if "_4-" in run.name]))


def test_a_table_has_a_line_for_each_length_of_the_plain_recipe(runs):
    text = equal_accuracy_table(pairs_at_equal_accuracy(load_groups(runs)), "knn_accuracy")
    assert [line.split("|")[3].strip() for line in text.split("\n")[2:]] == ["52.0", "49.0", "46.0", "43.0", "40.0"]


def test_a_length_without_seconds_leaves_those_of_the_others_in_their_rows(runs):
    for run in runs:
        if run.name.startswith("plain_1-"):
            metrics = json.loads((run / "metrics.json").read_text()) | {"train_seconds": None}
            (run / "metrics.json").write_text(json.dumps(metrics))
    text = equal_accuracy_table(pairs_at_equal_accuracy(load_groups(runs)), "knn_accuracy")
    cells = [[cell.strip() for cell in line.split("|")[3:6]] for line in text.split("\n")[2:]]
    assert [cell[0] for cell in cells] == ["52.0", "49.0", "46.0", "43.0", "40.0"]
    assert cells[-1][2] == "not measured" and not any("not measured" in cell for cell in cells[:-1])
    assert cells[0][2] == "4.00 (4.00 to 4.00)"


def test_seconds_of_two_machines_are_not_divided(runs, tmp_path):
    for run in runs:
        device = "cpu" if run.name.startswith("plain") else "gpu"
        metrics = json.loads((run / "metrics.json").read_text()) | {"device": device}
        (run / "metrics.json").write_text(json.dumps(metrics))
    pairs = pairs_at_equal_accuracy(load_groups(runs))
    first = equal_accuracy_table(pairs, "knn_accuracy").split("\n")[2]
    assert "| 2.00 (2.00 to 2.00) | not measured |" in first
    assert draw_equal_accuracy(pairs, "knn_accuracy", tmp_path / "c.png").exists()


@pytest.mark.parametrize("names", ["{}_{}", "{}_num_train_epochs{}", "{}_max_steps{}"])
def test_a_results_file_says_which_recipe_is_plain_whatever_its_names_and_order(names, tmp_path):
    strategies = {
        "fast": {"lr_schedule": "f1_clr", "resolution_schedule": "super_progressive", "selection": "hard"},
        "slow": {"lr_schedule": "cosine", "resolution_schedule": "constant", "selection": "none"},
    }
    cells = [
        {
            "cell": f"{names.format(name, length)}-seed{seed}", "columns": {}, "seed": seed, "method": "simsiam",
            "knn_accuracy": 40 + 3 * math.log2(length), "petaflops": length / (2 if name == "fast" else 1), **settings,
        }
        for name, settings in strategies.items() for length in LENGTHS for seed in (0, 1)
    ]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(cells))
    ((plain, other),) = pairs_at_equal_accuracy(load_groups([tmp_path / "results.json"]))
    assert (plain.name, other.name) == ("slow", "fast")
    assert "| fast | slow | 52.0 | 2.00 (2.00 to 2.00) |" in equal_accuracy_table([(plain, other)], "knn_accuracy")
