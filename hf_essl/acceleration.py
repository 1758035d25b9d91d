"""How a model and its memory are laid out: BatchNorm over processes, channels last, compiled backbones, shards."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm

from hf_essl.methods.gather import world_size
from hf_essl.methods.teacher import MomentumTeacher

if TYPE_CHECKING:
    from hf_essl.arguments import SSLTrainingArguments
    from hf_essl.methods.base import SSLModel

logger = logging.getLogger(__name__)


def prepare_layers(model: SSLModel, args: SSLTrainingArguments) -> None:
    """SyncBatchNorm and channels-last weights, in place, as the arguments say."""
    on_gpu = args.device.type != "cpu"  # SyncBatchNorm refuses a CPU
    if args.sync_batchnorm and model.sync_batchnorm and args.world_size > 1 and on_gpu:
        convert_sync_batchnorm(model)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Names of `mallopt`, from glibc's malloc.h."""


@cache
def keep_freed_memory() -> bool:
    """Has the C library keep what a step frees for the next one, for the process; False where it is not glibc.

    Else it hands large tensors back at once, and the system clears them page by page when they are asked for again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def compile_backbones(model: SSLModel, args: SSLTrainingArguments) -> None:
    """Compiles the backbone of the student and of its teacher in place, where `torch_compile` is set.

    One graph a resolution: heads, loss and views stay eager, and DDP wraps a model whose parameters keep their names.
    """
    if not args.torch_compile:
        return
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 64)  # stages x (selection, student, teacher, evaluation)
    for backbone in [model.backbone, *(m.backbone for m in model.modules() if isinstance(m, MomentumTeacher))]:
        backbone.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=False)


def warm_up_backbones(model: SSLModel, batch: int, resolutions: Iterable[int], compared_at: int | None) -> None:
    """Runs the backbones once at every resolution, forward and backward, so that none is compiled in a step.

    Nothing is left of it, neither gradients nor statistics nor draws. Call it before DDP wraps the model, under the
    autocast of training.

    Args:
        batch: images a view.
        compared_at: resolution of the selection pass, which has graphs of its own; None without one.
    """

    def views(resolution: int) -> Tensor:
        return torch.zeros(batch, 3, resolution, resolution, device=next(model.parameters()).device)

    teachers = [m for m in model.modules() if isinstance(m, MomentumTeacher)]
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    training = model.training
    model.train()
    with torch.random.fork_rng():
        for resolution in resolutions:
            logger.info("compiling at %d px", resolution)
            model.backbone(views(resolution)).float().sum().backward()
            with torch.no_grad():
                for teacher in teachers:
                    teacher.backbone(views(resolution))
        if compared_at is not None:
            with torch.no_grad(), batch_statistics(model):
                model.backbone(views(compared_at))
    model.train(training)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in statistics:
            buffer.copy_(before)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch, as in training, and updates no running statistic."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the first one's running statistics, as DDP does before a step and a checkpoint holds."""
    if world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Gathers the parameters that FSDP has sharded, for passes that do not go through the wrapped model's forward.

    All processes must enter it together; without FSDP it does nothing.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
