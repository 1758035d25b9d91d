"""How a model and its memory are laid out: BatchNorm over processes, channels last, compiled backbones, FSDP."""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hf_essl.compat import allow_recompiles
from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.methods import SSLModel
from hf_essl.methods.backbone import check_resolutions
from hf_essl.methods.checkpointing import check_checkpointing
from hf_essl.methods.teacher import MomentumTeacher
from hf_essl.methods.tokens import keep_tokens, patch_count
from hf_essl.recipe import check_token_views
from hf_essl.schedules import Curriculum, Size
from hf_essl.selection import frozen_running_stats
from hf_essl.views.tokens import kept_count

logger = logging.getLogger(__name__)


def check_network(model: SSLModel, views: ViewArguments, args: SSLTrainingArguments) -> None:
    """Raises ValueError for a backbone that does not accept a resolution, or cannot checkpoint or drop tokens."""
    if not set(views.resolutions) <= set(model.resolutions):
        check_resolutions(model.backbone, views.resolutions)
    check_token_views(model.backbone, type(model), views)
    if args.checkpoints_activations:
        check_checkpointing(model.backbone, args.checkpointing_options, args.torch_compile)


def prepare_layers(model: SSLModel, args: SSLTrainingArguments) -> None:
    """Applies SyncBatchNorm and channels-last weights, in place, as the arguments say."""
    on_gpu = args.device.type != "cpu"  # SyncBatchNorm refuses a CPU
    if args.sync_batchnorm and model.sync_batchnorm and args.world_size > 1 and on_gpu:
        convert_sync_batchnorm(model)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)


def set_up_loading(args: SSLTrainingArguments, data: DataArguments) -> None:
    """Completes the loader's settings in place: no pinned memory without a copy to a device, no workers to keep."""
    if args.data_seed is None:
        args.data_seed = args.seed  # otherwise the order of the images follows whatever seeded torch last
    if args.device.type == "cpu" or data.cache == "device":
        args.dataloader_pin_memory = False
    if args.dataloader_num_workers == 0:
        args.dataloader_persistent_workers = False  # torch refuses it


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # names of `mallopt`, from glibc's malloc.h


@cache
def disable_malloc_trim() -> bool:
    """Makes glibc keep freed memory for the next step, for the whole process; returns False with another C library.

    By default it returns large tensors to the system at once, which clears their pages again at each allocation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def compile_backbones(model: SSLModel, args: SSLTrainingArguments) -> None:
    """Compiles the backbone of the student and of its teacher in place, if `torch_compile` is set.

    There is one graph per size of the curriculum. Heads, loss and views stay eager, and parameters keep their names
    under DDP.
    """
    if not args.torch_compile:
        return
    allow_recompiles(64)  # stages x (selection, student, teacher, evaluation)
    for backbone in [model.backbone, *(m.backbone for m in model.modules() if isinstance(m, MomentumTeacher))]:
        backbone.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=False)


def warm_up_backbones(model: SSLModel, batch: int, curriculum: Curriculum, views_args: ViewArguments) -> None:
    """Runs the backbones once at each size, forward and backward, so that no step has to compile one.

    It leaves no gradients, statistics or random draws behind. Call it before DDP wraps the model, under the autocast
    of training. The selection pass has graphs of its own.

    Args:
        batch: images per view.
    """

    device = next(model.parameters()).device

    def run(backbone: nn.Module, size: Size, images: int = batch) -> Tensor:
        kept = None
        if size.tokens < 1:
            count = kept_count(patch_count(model.backbone, size.resolution), size.tokens)
            kept = torch.arange(count, device=device).repeat(images if backbone is model.backbone else 1, 1)
        with keep_tokens(backbone, kept):
            return backbone(torch.zeros(images, 3, size.resolution, size.resolution, device=device))

    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    training = model.training
    model.train()
    with torch.random.fork_rng():
        for size in curriculum.shares():
            logger.info("compiling at %s", size)
            run(model.backbone, size).float().sum().backward()
            if views_args.local_views:
                local = Size(views_args.local_size(size.resolution), 1.0)
                run(model.backbone, local, views_args.local_views * batch).float().sum().backward()
            with torch.no_grad():
                for teacher in model.teachers:
                    run(teacher.backbone, Size(size.resolution, views_args.teacher_tokens))
        if views_args.needs_selection_pass:
            with torch.no_grad(), frozen_running_stats(model):
                run(model.backbone, Size(views_args.selection_resolution, views_args.selection_tokens))
    model.train(training)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in statistics:
            buffer.copy_(before)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gathers the parameters that FSDP has sharded, for passes outside of the wrapped model's forward.

    All processes must enter it together. Without FSDP it does nothing.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
