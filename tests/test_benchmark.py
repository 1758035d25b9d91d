"""`hf-essl benchmark`: that each part is timed where it happens, at the stages of the recipe, and nothing is left."""

import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from hf_essl import cli
from hf_essl.benchmark import Stopwatch, benchmark
from hf_essl.data import CachedImages
from hf_essl.data.builtin import DATASETS
from hf_essl.methods.simsiam import SimSiam
from hf_essl.recipe import load_recipe
from hf_essl.reporting.throughput import PARTS, Benchmark, StageSpeed, draw_speeds, speed_table
from hf_essl.selection import HardAugment
from hf_essl.views import Views
from tests.helpers import patches

RECIPE = """
backbone: test_resnet
method_args: {projector_dim: 32, predictor_hidden: 16}
dataset: photo-patches
image_size: 32
resolution: 32
min_resolution: 16
resolution_step: 16
resolution_schedule: super_progressive
selection: hard
num_views: 3
selection_resolution: 16
lr_schedule: f1_clr
warmup_epochs: 1
num_train_epochs: 4
per_device_train_batch_size: 8
report_to: tensorboard
use_cpu: true
output_dir: runs/small
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Path of a small recipe in an empty folder, where the photo patches are 96."""
    monkeypatch.chdir(tmp_path)
    small = patches("train", 96)
    monkeypatch.setitem(DATASETS, "photo-patches", replace(DATASETS["photo-patches"], load=lambda *_: small))
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


class FakeTime:
    """A clock that only moves when one of the given methods is called."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.seconds = monkeypatch, 0.0
        monkeypatch.setattr(Stopwatch, "now", lambda watch: self.seconds)

    def advance_in(self, owner, name, seconds):
        method = getattr(owner, name)

        def slower(*args, **kwargs):
            self.seconds += seconds
            return method(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, slower)


def test_the_command_writes_a_table_a_picture_and_json(recipe, capsys):
    assert cli.main(["benchmark", str(recipe), "--steps", "1", "--rounds", "2", "--output", "out/speed.png"]) == 0
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if "measuring" in line] == [
        "measuring at 16 px …",
        "measuring at 32 px …",
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    titles = [*PARTS, "views by kornia", "whole", "bare step", "limit"]
    assert rows[0] == ["px", "share of steps", *titles, "of limit"]
    assert [row[:2] for row in rows[2:]] == [
        ["16", "38%"],
        ["32", "62%"],
        ["run", ""],
    ]  # 3 / 8, and the warm-up's 1 / 4
    found = json.loads((recipe.parent / "out" / "speed.json").read_text())
    assert (found["recipe"], found["batch_size"], found["rounds"], found["threads"]) == (
        "small.yaml",
        8,
        2,
        torch.get_num_threads(),
    )
    for stage in found["stages"]:
        for name, seconds in stage["seconds"].items():
            assert seconds > 0 and stage["images_per_second"][name] == pytest.approx(8 / seconds)
        assert stage["of_limit"] == pytest.approx(
            stage["images_per_second"]["whole"] / stage["images_per_second"]["limit"]
        )
    with Image.open(recipe.parent / "out" / "speed.png") as picture:
        assert picture.width > 1000
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["out", "small.yaml"]  # of the run, nothing


def test_each_part_is_timed_where_it_happens(recipe, monkeypatch):
    time = FakeTime(monkeypatch)
    time.advance_in(CachedImages, "__getitems__", 8)
    time.advance_in(Views, "sample_all", 12)
    time.advance_in(Views, "render_all", 4)  # for the views that are compared, and for the two that train
    time.advance_in(HardAugment, "compare", 28)
    time.advance_in(SimSiam, "forward", 16)
    time.advance_in(SimSiam, "after_backward", 20)
    time.advance_in(SimSiam, "after_step", 24)
    found = benchmark(load_recipe(recipe, ["--resolution_schedule", "constant"]), steps=1, rounds=1)
    (stage,) = found.stages
    expected = {"decode": 8, "candidates": 16, "views": 4, "selection": 28}
    expected |= {"forward": 16, "backward": 20, "optimizer": 24}
    expected |= {"bare": 60, "limit": 88, "whole": sum(expected.values()), "kornia": 8}
    assert stage.seconds == expected


def test_each_stage_trains_at_its_resolution_with_fresh_weights(recipe, monkeypatch):
    seen = []
    forward = SimSiam.forward

    def noting(self, first, second, **others):
        if first.device.type == "cpu":  # the FLOPs are counted without a device
            seen.append((first.shape[-1], id(self)))
        return forward(self, first, second, **others)

    monkeypatch.setattr(SimSiam, "forward", noting)
    benchmark(load_recipe(recipe), steps=2, rounds=2)
    # 2 rounds of 2 + 2 steps of the training, and 1 + 2 of the parts, of the bare step and of the limit
    assert [resolution for resolution, _ in seen] == [16] * 26 + [32] * 26
    assert len({model for _, model in seen}) == 2


def test_without_selection_there_is_none_to_time(recipe):
    words = ["--selection", "none", "--num_views", "2", "--resolution_schedule", "constant"]
    found = benchmark(load_recipe(recipe, words), steps=1, rounds=1)
    assert set(found.stages[0].seconds) == {*PARTS, "kornia", "whole", "bare", "limit"} - {"candidates", "selection"}
    assert not any(name in speed_table(found) for name in ("candidates", "selection"))


def speeds(**seconds):
    names = {
        "decode": 1.0,
        "views": 1.0,
        "kornia": 3.0,
        "bare": 3.5,
        "forward": 1.0,
        "backward": 2.0,
        "optimizer": 0.5,
    }
    return names | seconds


def example():
    stages = (
        StageSpeed(64, 1.0, 0.75, speeds(whole=5.0, limit=4.0)),
        StageSpeed(128, 1.0, 0.25, speeds(whole=20.0, limit=18.0)),
    )
    return Benchmark("r.yaml", "simsiam", "resnet18", "CPU", 2, 0, "memory", "2.11", 40, 5, 3, stages)


def test_the_table_and_the_run_by_hand():
    lines = speed_table(example()).splitlines()
    assert lines[2] == "| 64 | 75% | 40 | 40 | 40 | 20 | 80 | 13 | 8 | 10 | 0.80 |"
    assert lines[3] == "| 128 | 25% | 40 | 40 | 40 | 20 | 80 | 13 | 2 | 2 | 0.90 |"
    assert lines[4].endswith("| 0.86 |")  # (0.75 x 4 + 0.25 x 18) / (0.75 x 5 + 0.25 x 20)


def test_the_picture_shows_both_stages():
    figure = draw_speeds(example())
    assert isinstance(figure, Figure)
    rates, times = figure.axes
    assert [label.get_text() for label in rates.get_xticklabels()] == ["64 px", "128 px"]
    assert [bar.get_height() for bar in rates.containers[0]] == [8, 2]
    assert [text.get_text() for text in rates.texts] == ["80%", "90%"]
    assert sum(container[0].get_height() for container in times.containers) == pytest.approx(5.5 * 1000 / 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps: it is 0; it must be at least 1"),
        (["--rounds", "-1"], "--rounds: it is -1"),
        (["--output", "a.jpg"], "output is a.jpg; the picture is a PNG, name it a.png"),
        (["--backbone", "resnet5O"], "did you mean"),
        (["--dataset", "./nowhere"], "dataset is ./nowhere, which does not exist"),
        (["--resolutoin", "64"], "did you mean 'resolution'"),
        (["--per_device_train_batch_size", "128"], "96 training images do not fill a batch of 128"),
    ],
)
def test_mistakes_are_one_line(recipe, capsys, monkeypatch, words, message):
    monkeypatch.setattr(Views, "render", lambda *_: pytest.fail("work has begun"))
    assert cli.main(["benchmark", str(recipe), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-essl: error: ") and message in error
