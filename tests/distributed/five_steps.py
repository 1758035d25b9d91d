"""Five steps of every method on the same 16 images, in one process or shared out over several, by DDP or FSDP.

Every second step has local views too.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hf_essl.methods import METHODS, SSLModel
from hf_essl.training.layout import unsharded
from hf_essl.views.tokens import kept_tokens

IMAGES, STEPS = 16, 5
KINDS = ("ddp", "fsdp", "recomputed", "tokens")  # DDP with activation checkpointing; with dropped tokens of a ViT


def freeze_batchnorm(model):
    """Statistics of a batch of 16 are not those of two of 8; everything else must agree."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def wrap(model, kind: str | None):
    if kind == "fsdp":
        return fully_shard(model)
    if kind == "recomputed":
        model.activation_checkpointing_enable()
    return DistributedDataParallel(model, broadcast_buffers=False) if kind else model


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def train(method: str, rank: int = 0, processes: int = 1, kind: str | None = None, tokens: bool = False) -> dict:
    """Losses, first gradients and final state of five steps of SGD on this rank's share of the images."""
    torch.manual_seed(0)
    network, settings = ("test_vit", {"backbone_args": {"patch_size": 8}}) if tokens else ("test_convnext", {})
    settings |= {"method_args": METHODS[method].small_args, "resolutions": (32,)}
    model = SSLModel.from_timm(network, method, **settings).train()
    freeze_batchnorm(model)
    wrapped = wrap(model, kind)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    share = slice(rank * IMAGES // processes, (rank + 1) * IMAGES // processes)
    losses, chosen, gradients = [], [], {}
    for step in range(STEPS):
        first, second = torch.randn(2, IMAGES, 3, 32, 32, generator=generator)
        model.before_step(step / STEPS, step)
        with unsharded(model), torch.no_grad():
            chosen.append(model.embed(first[share])[1])  # as the selection pass does, outside the wrapped forward
        kept = kept_tokens(torch.arange(2 * IMAGES) + 100 * step, 16, 0.5).view(IMAGES, 2, 8) if tokens else None
        local = torch.randn(2, IMAGES, 3, 32, 32, generator=generator)[:, share] if step % 2 else None
        loss = wrapped(first[share], second[share], tokens=kept if kept is None else kept[share], local=local)["loss"]
        loss.mean().backward()
        losses.append(loss.detach())
        if not gradients:
            gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        model.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    state = {name: whole(value) for name, value in model.state_dict().items()}
    return {"losses": torch.stack(losses), "embedded": torch.stack(chosen), "gradients": gradients, "state": state}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    for kind in KINDS:
        found = {method: train(method, rank, processes, kind, kind == "tokens") for method in METHODS}
        torch.save({"world_size": processes, "methods": found}, folder / f"{kind}{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main(Path(sys.argv[1]))
