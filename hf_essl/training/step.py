"""The order of one optimizer step: as a function, and as a callback for Trainer's own loop.

before_step → forward → backward → after_backward → optimizer → after_step
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_essl.compat import shutdown_workers
from hf_essl.methods import SSLModel


def run_step(
    model: SSLModel,
    views: Mapping[str, Tensor],
    optimizer: Optimizer,
    *,
    progress: float = 0.0,
    epoch: float = 0.0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    backward: Callable[[Tensor], None] = Tensor.backward,
    timed: Callable[[str], AbstractContextManager] = lambda part: nullcontext(),
) -> Tensor:
    """One optimizer step of a model in train mode; returns the mean loss before it, a scalar on the device.

    `timed` is a context around each of the parts forward, backward and optimizer.
    """
    with timed("forward"):
        model.before_step(progress, epoch)
        with autocast():
            loss = model(**views)["loss"].mean()
    with timed("backward"):
        backward(loss)
        model.after_backward()
    with timed("optimizer"):
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    return loss.detach()


class MethodCallback(TrainerCallback):
    """Calls the method's hooks in Trainer's loop, in the order of `run_step`."""

    def __init__(self, accelerator: Callable[[], Accelerator]):
        self.accelerator = accelerator  # each trial of a search has another one

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        epoch = state.global_step * args.num_train_epochs / state.max_steps
        model.before_step(state.global_step / state.max_steps, epoch)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.after_backward()

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.accelerator().optimizer_step_was_skipped:  # fp16 skips a step with infinite gradients
            model.after_step()


def endless(loader: DataLoader) -> Generator:
    """Repeats a loader without end; its workers stop when the generator is closed."""
    try:
        while True:
            yield from loader
    finally:
        shutdown_workers(loader)
