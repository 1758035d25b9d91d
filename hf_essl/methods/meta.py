"""Passes on the meta device: shapes and operation counts of a network, without its memory and without a trace."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_essl.compat import without_process_group

BATCH = 2  # the smallest for which BatchNorm over vectors can train
Module = TypeVar("Module", bound=nn.Module)


def meta_copy(module: Module) -> Module:
    """A deep copy whose parameters and buffers have shapes but no memory."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in module.parameters()
    }
    memo.update({id(b): b.detach().to("meta") for b in module.buffers()})  # deepcopy does not copy what is in memo
    return copy.deepcopy(module, memo)


@contextmanager
def isolated() -> Iterator[None]:
    """Restores the CPU's random state, compiles nothing, and hides the process group, which cannot take part."""
    with without_process_group(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
        yield


def meta_views(resolution: int) -> Tensor:
    """Images without pixels, `BATCH` x 3 x r x r."""
    return torch.empty(BATCH, 3, resolution, resolution, device="meta")
