"""The clock, the bar and the lines that a user watches."""

import io

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_essl.training import clock as clock_module
from hf_essl.training.callbacks import ClockCallback
from hf_essl.training.clock import Clock
from hf_essl.training.progress import ProgressBarCallback, describe_evaluation


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


def test_a_resumed_run_continues_from_the_seconds_in_its_log(now):
    clock, state = Clock(), TrainerState()
    state.log_history = [{"train_seconds": 10.0}, {"train_seconds": 20.0}, {"eval_knn_accuracy": 1.0}]
    callback = ClockCallback(clock)
    callback.on_train_begin(None, state, TrainerControl())
    now[0] += 3
    callback.on_train_end(None, state, TrainerControl())
    assert clock.seconds == 23
    assert clock.lap() == 3


def test_lines_without_a_terminal(monkeypatch, tmp_path):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    callback, state = ProgressBarCallback(), TrainerState(global_step=3, max_steps=9)
    state.is_world_process_zero = True
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_train_begin(args, state, None)
    logs = {"loss": -0.5, "learning_rate": 0.05, "momentum": 0.9, "resolution": 96, "magnitude": 4.5}
    callback.on_log(args, state, None, logs={**logs, "images_per_second": 200.4, "petaflops": 0.0123})
    callback.on_train_end(args, state, None)
    line = "step 3/9  loss -0.5000  lr 0.0500  mom 0.900  96 px  mag 4.50  200 img/s  0.0123 pF"
    assert line in stream.getvalue().splitlines()


def test_an_evaluation_in_one_line():
    metrics = {"eval_knn_accuracy": 84.06, "eval_feature_std": 0.02, "eval_rankme": 12.3}
    assert describe_evaluation(metrics) == "kNN 84.1 %  feature std 0.0200  RankMe 12.3"
    assert describe_evaluation({"eval_feature_std": 0.02}) == "feature std 0.0200"
