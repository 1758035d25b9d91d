"""How a model is laid out on its devices: BatchNorm over all processes, memory format, compiled backbones, shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hf_essl.methods.gather import world_size
from hf_essl.methods.teacher import MomentumTeacher

if TYPE_CHECKING:
    from hf_essl.arguments import SSLTrainingArguments
    from hf_essl.methods.base import SSLModel


def prepare_layers(model: SSLModel, args: SSLTrainingArguments) -> None:
    """SyncBatchNorm and channels-last weights, in place, as the arguments say."""
    on_gpu = args.device.type != "cpu"  # SyncBatchNorm refuses a CPU
    if args.sync_batchnorm and model.sync_batchnorm and args.world_size > 1 and on_gpu:
        convert_sync_batchnorm(model)
    if args.channels_last if args.channels_last is not None else on_gpu:
        model.to(memory_format=torch.channels_last)


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
