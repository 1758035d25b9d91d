"""The clock, the bar and the lines that a user watches."""

import io

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from hf_essl.schedules import SuperProgressiveCallback, TokenSchedule
from hf_essl.schedules.curriculum import Curriculum, MagnitudeSchedule, ResolutionSchedule
from hf_essl.training import clock as clock_module
from hf_essl.training.callbacks import ClockCallback
from hf_essl.training.clock import Clock
from hf_essl.training.eta import Eta, Pauses, duration, times_left
from hf_essl.training.progress import ProgressBarCallback, describe_evaluation, fitting
from tests.helpers import small_trainer


@pytest.fixture
def now(monkeypatch):
    """A list whose first item is the time in seconds."""
    time = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: time[0])
    return time


def test_the_clock_does_not_count_pauses(now):
    clock = Clock()
    clock.start()
    now[0] += 5
    with clock.paused():
        now[0] += 7
        assert clock.seconds == 5
    now[0] += 2
    clock.stop()
    now[0] += 11
    assert clock.seconds == 7
    assert clock.lap() == 7 and clock.lap() == 0


def test_a_resumed_run_continues_from_the_seconds_of_its_checkpoint(now):
    clock, state = Clock(), TrainerState()
    callback = ClockCallback(clock, lambda: 20.0)
    callback.on_train_begin(None, state, TrainerControl())
    now[0] += 3
    callback.on_train_end(None, state, TrainerControl())
    assert clock.seconds == 23
    assert clock.lap() == 3


def test_lines_without_a_terminal(monkeypatch, tmp_path):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    curriculum = Curriculum(ResolutionSchedule((64, 96), 0.0, 96), MagnitudeSchedule(4, 6))
    callback, state = ProgressBarCallback(curriculum, float, Clock(), 0), TrainerState(global_step=3, max_steps=9)
    state.is_world_process_zero = True
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_train_begin(args, state, None)
    logs = {"loss": -0.5, "learning_rate": 0.05, "momentum": 0.9, "resolution": 96, "magnitude": 4.5}
    callback.on_log(args, state, None, logs={**logs, "images_per_second": 200.4, "petaflops": 0.0123})
    callback.on_train_end(args, state, None)
    line = "step 3/9  loss -0.5000  96 px  200 img/s  lr 0.0500  mom 0.900  mag 4.50  0.0123 pF"
    assert line in stream.getvalue().splitlines()


def curriculum(*stages):
    return Curriculum(ResolutionSchedule(stages, 0.0, stages[-1]), MagnitudeSchedule(4, 6))


def test_the_eta_by_hand():
    """10 steps at 32, 64 and 96 px each; a step at 32 px takes 1 s, and 64 px costs 4, 96 px 9 times as much."""
    eta = Eta(curriculum(32, 64, 96), lambda size: (size.resolution / 32) ** 2, 30)
    assert eta.remaining(0) is None
    for step in range(10):
        eta.add(step, 5.0 if step < 2 else 1.0)  # the first two warm up
    assert eta.remaining(10) == pytest.approx(10 * (0.2 + 0.8 * 4) + 10 * (0.2 + 0.8 * 9))  # a fifth stays
    for step in range(10, 20):
        eta.add(step, 2.5)  # half a second per unit, and half a second of any step
    assert eta.remaining(20) == pytest.approx(10 * (0.5 + 0.5 * 9))
    for step in range(20, 25):
        eta.add(step, 10.0)
    assert eta.remaining(25) == pytest.approx(50) and eta.remaining(30) == 0


def test_the_eta_knows_the_tokens():
    """10 steps at half of the tokens, then 10 with all of them, twice as expensive."""
    tokens = Curriculum(ResolutionSchedule((32,), 0.0, 32), MagnitudeSchedule(4, 6), TokenSchedule(0.5, 1.0, 2))
    eta = Eta(tokens, lambda size: size.tokens, 20)
    for step in range(10):
        eta.add(step, 1.0)
    assert eta.remaining(10) == pytest.approx(10 * (0.2 + 0.8 * 2))
    for step in range(10, 15):
        eta.add(step, 1.5)
    assert eta.remaining(15) == pytest.approx(7.5)


def test_a_slow_machine_at_small_images_gives_no_negative_eta():
    eta = Eta(curriculum(32, 64, 96), lambda size: (size.resolution / 32) ** 2, 30)
    for step in range(20):
        eta.add(step, 9.0 if step < 10 else 4.0)
    assert eta.remaining(20) == pytest.approx(10 * 4.0 * (0.2 + 0.8 * 9 / 4))


def test_the_last_evaluation_and_checkpoint_are_those_that_come(now):
    clock = Clock()
    clock.start()
    pauses = Pauses(lambda: clock.paused_seconds)
    for seconds, happened in ((2, pauses.evaluated), (1, pauses.saved), (3, pauses.evaluated)):
        now[0] += 8
        with clock.paused():
            now[0] += seconds
        happened()
    assert (pauses.evaluation, pauses.checkpoint) == (3, 1)


@pytest.mark.parametrize(
    ("every", "done", "total", "times"),
    [(2, 0, 10, 4), (2, 2.0, 10, 3), (2, 1.99999999, 10, 3), (3, 1.5, 10, 3), (0, 1, 10, 0), (20, 0, 10, 0)],
)
def test_how_often_before_the_end(every, done, total, times):
    assert times_left(every, done, total) == times


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (3725, "1:02 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_a_run_shows_lines_with_an_eta_in_a_file(disable_tqdm, tmp_path, capsys):
    trainer = small_trainer(tmp_path, max_steps=6, disable_tqdm=disable_tqdm)
    trainer.train()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    training = [line for line in lines if "loss" in line]
    assert len(training) == 6 and all("ETA" in line and "img/s" in line for line in training[:-1])
    assert any("retrieval" in line and "kNN" in line for line in lines)
    rates = [entry["tflops_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(rate > 0 for rate in rates)


@pytest.mark.parametrize(("columns", "last"), [(80, "lr 0.0500"), (120, "0.0123 pF"), (40, "ETA 1:20 min")])
def test_a_line_fits_the_terminal(columns, last, monkeypatch):
    parts = ["step 120/384 ", "ETA 1:20 min", "loss -0.5000", "96 px", "200 img/s", "lr 0.0500", "mom 0.900"]
    parts += ["mag 4.50", "std 0.0441", "0.0123 pF"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    line = fitting(parts)
    assert line.endswith(last) and len(line) <= columns


def test_a_bar_of_80_columns(monkeypatch, tmp_path):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    trainer = small_trainer(tmp_path / "a_run_with_a_very_long_name_that_goes_on", max_steps=6, disable_tqdm=False)
    trainer.train()
    shown = stream.getvalue().replace("\x1b[A", "").replace("\n", "\r").split("\r")
    assert not [line for line in shown if len(line) > 80]
    bars = [line for line in shown if "%|" in line]
    assert any(all(text in line for text in ("ETA", "loss", "px", "img/s")) for line in bars)


def test_an_evaluation_in_one_line():
    metrics = {"eval_knn_accuracy": 84.06, "eval_feature_std": 0.02, "eval_rankme": 12.3}
    assert describe_evaluation(metrics) == "kNN 84.1 %  feature std 0.0200  RankMe 12.3"
    assert describe_evaluation({"eval_feature_std": 0.02}) == "feature std 0.0200"


class NotebookProgressCallback(ProgressCallback):
    """Stands for the one of `transformers.utils.notebook`, which needs IPython."""


@pytest.mark.parametrize("bar", [ProgressCallback, NotebookProgressCallback])
def test_a_run_has_one_bar(bar, monkeypatch, tmp_path):
    """transformers chooses its own bar on import: another one in a notebook."""
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", bar)
    plain = Trainer(torch.nn.Linear(1, 1), TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=False))
    assert bar in [type(callback) for callback in plain.callback_handler.callbacks], "transformers adds it"
    trainer = small_trainer(tmp_path, disable_tqdm=False)
    bars = [c for c in trainer.callback_handler.callbacks if "Progress" in type(c).__name__]
    assert [type(c) for c in bars if not isinstance(c, SuperProgressiveCallback)] == [ProgressBarCallback]
