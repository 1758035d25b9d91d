"""MoCo v2+: Improved Baselines with Momentum Contrastive Learning (Chen et al. 2020), with a symmetric loss."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.methods.base import Pair, SSLModel, contrastive_components, full_precision
from hf_essl.methods.distributed import gather, rank, world_size
from hf_essl.methods.heads import mlp
from hf_essl.methods.teacher import MomentumTeacher


class MoCoV2(SSLModel):
    """InfoNCE against a queue of keys (Eq. 1 of MoCo), the mean of both directions.

    Both terms see the queue as it was before the step, and the step's keys, those of all processes and of all batches
    that were accumulated, enter it after the optimizer step: an image is never its own negative.

    Args:
        backbone: B x 3 x r x r to B x C.
        projector_hidden: hidden size of the projector; by default C.
        projector_dim: size of queries and keys, D.
        queue_length: K, below data set - batch: 4,096 on Imagenette, 65,536 on ImageNet.
        temperature: of the softmax over similarities.
        momentum: tau of the teacher, constant.
        splits: BatchNorm groups of the teacher on one device, where there is no other process to shuffle with: a
            key's statistics must not give its query away.
    """

    title = "MoCo v2+"
    description = "InfoNCE against a queue of a momentum teacher's keys, in both directions (Chen et al. 2020)"
    citation = r"""@article{chen2020improved,
  title   = {Improved Baselines with Momentum Contrastive Learning},
  author  = {Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming},
  journal = {arXiv preprint arXiv:2003.04297},
  year    = {2020}
}"""
    small_args: ClassVar[dict[str, Any]] = {"projector_dim": 16, "queue_length": 40}
    has_teacher = True
    sync_batchnorm = False  # statistics shared by all processes would give the queries away
    collapse_hint = "lower learning_rate, or raise temperature in method_args"
    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        projector_hidden: int | None = None,
        projector_dim: int = 128,
        queue_length: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        splits: int = 8,
    ):
        super().__init__(backbone)
        self.temperature, self.momentum, self.splits = temperature, momentum, splits
        hidden = projector_hidden or self.num_features
        self.projector = mlp((self.num_features, hidden, projector_dim), norm=False)
        self.teacher = MomentumTeacher(self.backbone, self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(queue_length, projector_dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self._waiting: list[Tensor] = []  # this step's keys, until after_step

    def embed(self, view: Tensor) -> Pair:
        z = self.projector(self.backbone(view))  # B x D
        return z, z

    def targets(self, views: Pair, keys: Pair) -> Pair:
        first, second = (F.normalize(self._shuffled(view).float(), dim=1) for view in views)
        self._waiting += [first, second]
        return first, second

    def _shuffled(self, view: Tensor) -> Tensor:
        """The teacher's keys of a view, B x D, normalised in other groups than the student's batches (shuffle-BN)."""
        if world_size() == 1:
            splits = min(self.splits, len(view) // 2) or 1
            groups = [self.teacher(view[group::splits].contiguous()) for group in range(splits)]
            keys = groups[0].new_empty(len(view), groups[0].shape[1])
            for group, rows in enumerate(groups):
                keys[group::splits] = rows
            return keys
        everyone = gather(view)  # WB x 3 x r x r
        keys = gather(self.teacher(everyone[rank() :: world_size()].contiguous()))
        in_order = keys.unflatten(0, (world_size(), -1)).transpose(0, 1).flatten(0, 1)  # row w B + b is image b W + w
        return in_order[rank() * len(view) :][: len(view)]

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        return (self._find(queries[0], keys[1]) + self._find(queries[1], keys[0])) / 2

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        return contrastive_components(queries, keys, losses, self.temperature)

    def _find(self, query: Tensor, key: Tensor) -> Tensor:
        """Cross-entropy of each query's own key against the queue: B x D and B x D to B."""
        with full_precision(query):
            query, key = F.normalize(query.float(), dim=1), F.normalize(key.float(), dim=1)
            positive = (query * key).sum(dim=1, keepdim=True)  # B x 1
            logits = torch.cat([positive, query @ self.queue.clone().T], dim=1) / self.temperature  # B x (1 + K)
            # a clone, since the queue changes in place before the next backward may have read it
            return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none")

    def loss_at_collapse(self, images: int) -> float:
        return math.log(1 + len(self.queue))

    def check_data(self, images: int, batch: int) -> None:
        if len(self.queue) >= images - batch:
            raise ValueError(
                f"queue_length is {len(self.queue)} with {images} images and batches of {batch}: an image would meet "
                f"its own older keys; set method_args: {{queue_length: N}} with N below {max(images - batch, 1)}"
            )

    def before_step(self, progress: float, epoch: float) -> None:
        self._waiting.clear()  # those of a step that fp16 skipped

    def after_step(self) -> None:
        self.teacher.ema_update(self.backbone, self.projector, self.momentum)
        for keys in self._waiting:
            self.enqueue(gather(keys))
        self._waiting.clear()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Puts keys, N x D, in the place of the oldest."""
        length = len(self.queue)
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % length
        self.queue[places] = keys.to(self.queue.dtype)
        self.pointer.copy_((self.pointer + len(keys)) % length)
