"""The momentum teacher: a copy of the student that follows it slowly and makes the target keys."""

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from hf_essl.compat import lerp_
from hf_essl.methods.checkpointing import has_running_statistics


class MomentumTeacher(nn.Module):
    """A copy of the student's backbone and projector, without gradient and without dropout of any kind.

    BatchNorm stays in train mode, as published. Every other module is in evaluation mode, so that its target keys are
    deterministic.

    Args:
        backbone: B x 3 x r x r to B x C.
        head: the projector, B x C to B x D; a predictor is not copied.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.head = copy.deepcopy(head)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the normalizations that have running statistics; all other modules stay in evaluation."""
        super().train(mode)
        for module in [*self.backbone.modules(), *self.head.modules()]:
            module.training = mode and has_running_statistics(module)
        return self

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        return self.head(self.backbone(view))  # B x D

    @torch.no_grad()
    def ema_update(self, backbone: nn.Module, head: nn.Module, tau: float) -> None:
        """Sets each parameter to tau teacher + (1 - tau) student; buffers are not averaged."""
        student = [p.detach() for module in (backbone, head) for p in module.parameters()]
        lerp_(list(self.parameters()), student, 1 - tau)
        self._clear_caches()

    def _clear_caches(self) -> None:
        """LeViT and others cache position biases in evaluation mode, until they are set to train mode."""
        modes = [(module, module.training) for module in self.backbone.modules()]
        self.backbone.train()
        for module, mode in modes:
            module.training = mode


def cosine_momentum(base: float, progress: float) -> float:
    """tau at `progress` k / K: 1 - (1 - base) (cos(pi k / K) + 1) / 2, a rise from `base` to 1 (BYOL, DINO)."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
