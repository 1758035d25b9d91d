"""The trainer's own callbacks: when to evaluate, the clock, and how to stop."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_essl.training.clock import Clock

LOGS = 20  # log entries of a run, at least; otherwise its curves would have no points
STOPPING = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class LogOftenCallback(TrainerCallback):
    """Gives a short run at least 20 log entries, or one for each step, and every run one for its last step."""

    def on_train_begin(self, args, state, control, **kwargs):
        state.logging_steps = min(state.logging_steps, max(1, state.max_steps // LOGS))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.logging_strategy == IntervalStrategy.STEPS:
            control.should_log = True


class EvaluateEveryCallback(TrainerCallback):
    """Evaluates the random initialization, every `epochs` epochs (0: none) and the end of the run."""

    def __init__(self, evaluate: Callable[[], object], epochs: int):
        self.evaluate, self.epochs = evaluate, epochs

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and not args.eval_on_start:  # a resumed run has it in its log
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
    """Runs the clock of the training, from `seconds` on: those that its checkpoint has counted."""

    def __init__(self, clock: Clock, seconds: Callable[[], float]):
        self.clock, self.seconds = clock, seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.reset(self.seconds())
        self.clock.start()

    def on_train_end(self, args, state, control, **kwargs):
        self.clock.stop()


class StopOnSignalCallback(TrainerCallback):
    """Ctrl-C, SIGTERM or SIGHUP finishes the step, saves a checkpoint and stops; a second one stops at once.

    Under `nohup`, which ignores SIGHUP, a run goes on. Several processes agree after each step, over gloo and without
    waiting for a device, because signals reach them at different steps; there, further signals change nothing: a
    launcher sends its own when it gets one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._heard = 0
        self._group: Any = None  # the processes that agree; None for one process
        self._original: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.received, self._heard = None, 0
        if threading.current_thread() is not threading.main_thread():
            return
        if args.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        heard = [s for s in STOPPING if signal.getsignal(s) is not signal.SIG_IGN]
        self._original = {s: signal.signal(s, self._receive) for s in heard}

    def _receive(self, number, frame):
        self._heard = self._heard or number
        if self._group is None:
            self._restore()

    def on_step_end(self, args, state, control, **kwargs):
        if number := self._agreed():
            self.received = signal.Signals(number)
        if self.received and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def _agreed(self) -> int:
        """The number of a signal that any process has heard; 0 for none."""
        if self._group is None:
            return self._heard
        heard = torch.tensor(self._heard)
        dist.all_reduce(heard, dist.ReduceOp.MAX, group=self._group)
        return int(heard)

    def on_train_end(self, args, state, control, **kwargs):
        self._restore()

    def _restore(self):
        for number, handler in self._original.items():
            signal.signal(number, handler)
        self._original = {}
