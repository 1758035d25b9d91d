"""Five steps of every method on the same 16 images, in one process or shared out over several."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hf_essl.methods import METHODS, SSLModel
from tests.methods.small import SMALL_HEADS

IMAGES, STEPS = 16, 5


def freeze_batchnorm(model):
    """Statistics of a batch of 16 are not those of two of 8; everything else must agree."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def train(method: str, rank: int = 0, processes: int = 1) -> dict:
    """Losses, first gradients and final state of five steps of SGD on this rank's share of the images."""
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_convnext", method, method_args=SMALL_HEADS[method]).train()
    freeze_batchnorm(model)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if processes > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    share = slice(rank * IMAGES // processes, (rank + 1) * IMAGES // processes)
    losses, gradients = [], {}
    for step in range(STEPS):
        first, second = torch.randn(2, IMAGES, 3, 32, 32, generator=generator)
        model.before_step(step / STEPS, step)
        loss = wrapped(first[share], second[share])["loss"]
        loss.mean().backward()
        losses.append(loss.detach())
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    return {"losses": torch.stack(losses), "gradients": gradients, "state": model.state_dict()}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    found = {method: train(method, rank, processes) for method in METHODS}
    torch.save({"world_size": processes, "methods": found}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main(Path(sys.argv[1]))
