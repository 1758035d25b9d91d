"""Tensors of all processes, with and without their gradient; in one process each is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def rank() -> int:
    """This process's number, 0 where there is one."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _several() else 1


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of all processes, rank after rank: B x D to WB x D.

    Its backward sums over the processes what each one's loss asks of these rows; DDP then takes the mean.
    """
    return torch.cat(all_gather(x.contiguous())) if _several() else x


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """The rows of all processes, rank after rank, without gradient: B x D to WB x D."""
    if not _several():
        return x
    rows = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if _several():
        x = x.clone()
        dist.all_reduce(x)
        x /= world_size()
    return x


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def broadcast_buffers(model: torch.nn.Module) -> None:
    """Gives all processes the buffers of the first one (BatchNorm's running statistics), as DDP does before a step."""
    if _several():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
