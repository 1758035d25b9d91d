"""Collectives over all W processes; each is the identity in a single process."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, B x D to WB x D.

    The backward pass sums the gradients of all processes; DDP then averages them.
    """
    return torch.cat(all_gather(x.contiguous())) if world_size() > 1 else x


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """`gather_with_gradient` without the gradient."""
    return gather_with_gradient(x)


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x.div_(world_size())


@torch.no_grad()
def broadcast_buffers(model: torch.nn.Module) -> None:
    """Copies the first process's buffers, such as running statistics, to all others, as DDP does before a step."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
