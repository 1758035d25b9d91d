"""The trainer's own callbacks: what changes after a step, when to evaluate, how to stop, what a user watches."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_essl.clock import Clock


class MethodCallback(TrainerCallback):
    """Calls the hooks of the method around every optimizer step: schedules, gradients, what outlives the step.

    Args:
        waits: whether a step only puts its batch by, for a later one to train on.
    """

    def __init__(self, accelerator, waits: Callable[[int], bool]):
        self.accelerator, self.waits = accelerator, waits

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        epoch = state.global_step * args.num_train_epochs / state.max_steps
        model.before_step(state.global_step / state.max_steps, epoch)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.after_backward()

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        skipped = self.accelerator.optimizer_step_was_skipped  # fp16: a step with infinite gradients does not count
        if not skipped and not self.waits(state.global_step):
            model.after_step()


class EvaluateEveryCallback(TrainerCallback):
    """Evaluates the random initialisation, then at the end of every N-th epoch and of the run.

    Args:
        evaluate: the trainer's `evaluate`.
        epochs: N; 0 leaves the start and the end.
    """

    def __init__(self, evaluate, epochs: int):
        self.evaluate = evaluate
        self.epochs = epochs

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:  # a resumed run has this in its log
            self.evaluate()

    def on_epoch_end(self, args, state, control, **kwargs):
        epoch = round(state.epoch or 0)
        last = state.global_step >= state.max_steps
        if not last and self.epochs and epoch % self.epochs == 0 and not control.should_training_stop:
            control.should_evaluate = True

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


class ClockCallback(TrainerCallback):
    """Runs the clock of the training; a resumed run goes on from the seconds in its log."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_begin(self, args, state, control, **kwargs):
        counted = [entry["train_seconds"] for entry in state.log_history if "train_seconds" in entry]
        self.clock.reset(counted[-1] if counted else 0.0)
        self.clock.start()

    def on_train_end(self, args, state, control, **kwargs):
        self.clock.stop()


class StopOnSignalCallback(TrainerCallback):
    """Ctrl-C or SIGTERM finishes the step, saves a checkpoint and stops; a second one stops at once.

    In one process alone: signals reach the ranks of a group at different steps.

    Args:
        waits: whether a step only puts its batch by, for a later one to train on.
    """

    def __init__(self, waits: Callable[[int], bool]):
        self.waits = waits
        self.received: signal.Signals | None = None
        self._former: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.received = None
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._former = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def _receive(self, number, frame):
        self.received = signal.Signals(number)
        self._restore()

    def on_step_end(self, args, state, control, **kwargs):
        if self.received and state.global_step < state.max_steps and not self.waits(state.global_step - 1):
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self._restore()

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


class ProgressBarCallback(TrainerCallback):
    """A bar with loss, LR, momentum, resolution, magnitude, images/s and petaFLOPs; lines without a terminal."""

    FIELDS = (
        ("loss", "loss {:.4f}"),
        ("learning_rate", "lr {:.4f}"),
        ("momentum", "mom {:.3f}"),
        ("resolution", "{:.0f} px"),
        ("magnitude", "mag {:.2f}"),
        ("feature_std", "std {:.4f}"),
        ("images_per_second", "{:.0f} img/s"),
        ("petaflops", "{:.3g} pF"),
    )

    def __init__(self):
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, dynamic_ncols=True, disable=not sys.stderr.isatty()
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n if not self.bar.disable else 0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None:
            return
        where = f"step {state.global_step}/{state.max_steps}"
        if "loss" in logs:
            text = "  ".join(form.format(logs[key]) for key, form in self.FIELDS if logs.get(key) is not None)
            if self.bar.disable:
                print(f"{where}  {text}", file=sys.stderr, flush=True)
            else:
                self.bar.set_postfix_str(text)
        elif any(key.startswith("eval_") for key in logs):
            self.bar.write(f"{where}  {describe_evaluation(logs)}", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def describe_evaluation(metrics: dict) -> str:
    """An evaluation in one line, such as `kNN 84.1 %  feature std 0.0208  RankMe 61.3`."""
    fields = (
        ("knn_accuracy", "kNN {:.1f} %"),
        ("probe_accuracy", "probe {:.1f} %"),
        ("feature_std", "feature std {:.4f}"),
        ("rankme", "RankMe {:.1f}"),
    )
    values = {key.split("_", 1)[-1]: value for key, value in metrics.items()}
    return "  ".join(form.format(values[key]) for key, form in fields if key in values)
