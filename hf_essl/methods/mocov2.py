"""MoCo v2+: Improved Baselines with Momentum Contrastive Learning (Chen et al. 2020), with a symmetric loss."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.config.fields import Count, Positive, Probability, checked
from hf_essl.methods.base import Pair, SSLModel, contrastive_components, full_precision
from hf_essl.methods.distributed import gather, rank, world_size
from hf_essl.methods.heads import mlp
from hf_essl.methods.teacher import MomentumTeacher


class MoCoV2(SSLModel):
    """InfoNCE against a queue of keys (Eq. 1 of MoCo), the mean of both directions.

    The keys of a step, from all processes and accumulated batches, enter the queue after the optimizer step, so an
    image is not compared with its own keys of this epoch. It is compared with those of the previous epoch if it came
    late in that one and comes early in this one: a share of (K / 2N)^2 / 2 of N images, which is 2 % on Imagenette
    and 0.03 % on ImageNet.

    Args:
        projector_hidden: hidden size of the projector; by default the backbone's width.
        projector_dim: D, the size of queries and keys.
        queue_length: K, less than data set - batch: 4,096 on Imagenette, 65,536 on ImageNet.
        temperature: of the softmax over similarities.
        momentum: tau of the teacher, constant.
        splits: BatchNorm groups of the teacher in a single process, which cannot shuffle keys between processes;
            otherwise the statistics of a key reveal its query.
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
    sync_batchnorm = False  # statistics shared by all processes reveal the queries
    collapse_hint = "lower learning_rate, or raise temperature in method_args"
    queue: Tensor
    pointer: Tensor

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        projector_hidden: Count | None = None,
        projector_dim: Count = 128,
        queue_length: Count = 65536,
        temperature: Positive = 0.2,
        momentum: Probability = 0.999,
        splits: Count = 8,
    ):
        super().__init__(backbone)
        self.temperature, self.momentum, self.splits = temperature, momentum, splits
        hidden = projector_hidden or self.num_features
        self.projector = mlp((self.num_features, hidden, projector_dim), norm=False)
        self.teacher = MomentumTeacher(self.backbone, self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(queue_length, projector_dim), dim=1))  # K x D
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self._pending_keys: list[Tensor] = []  # B x D each, of this step

    def embed(self, view: Tensor) -> Pair:
        z = self.projector(self.backbone(view))  # B x D
        return z, z

    def targets(self, views: Pair, keys: Pair) -> Pair:
        first, second = (F.normalize(self._shuffled_keys(view).float(), dim=1) for view in views)
        self._pending_keys += [first, second]
        return first, second

    def _shuffled_keys(self, view: Tensor) -> Tensor:
        """The teacher's keys of a view, B x D, from other BatchNorm groups than the student's (shuffling BN)."""
        if world_size() == 1:
            splits = min(self.splits, len(view) // 2) or 1
            groups = [self.teacher(view[group::splits].contiguous()) for group in range(splits)]
            keys = groups[0].new_empty(len(view), groups[0].shape[1])
            for group, rows in enumerate(groups):
                keys[group::splits] = rows
            return keys
        everyone = gather(view)  # WB x 3 x r x r
        keys = gather(self.teacher(everyone[rank() :: world_size()].contiguous()))  # row w B + b is image b W + w
        in_order = keys.unflatten(0, (world_size(), -1)).transpose(0, 1).flatten(0, 1)  # WB x D
        return in_order[rank() * len(view) :][: len(view)]

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        return (self._info_nce(queries[0], keys[1]) + self._info_nce(queries[1], keys[0])) / 2  # B

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        return contrastive_components(queries, keys, losses, self.temperature)

    def _info_nce(self, query: Tensor, key: Tensor) -> Tensor:
        """Cross-entropy of each query's own key against the queue: B x D and B x D to B."""
        with full_precision(query):
            query, key = F.normalize(query.float(), dim=1), F.normalize(key.float(), dim=1)
            positive = (query * key).sum(dim=1, keepdim=True)  # B x 1
            negatives = query @ self.queue.clone().T  # B x K; a clone, since backward may run after the queue changes
            logits = torch.cat([positive, negatives], dim=1) / self.temperature  # B x (1 + K)
            return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none")

    def loss_at_collapse(self, images: int) -> float:
        return math.log(1 + len(self.queue))

    def check_data(self, images: int, batch: int) -> None:
        if len(self.queue) >= images - batch:
            raise ValueError(
                f"queue_length is {len(self.queue)}, too long for {images} images in batches of {batch} (too many of "
                f"them would meet their own keys of the previous epoch); set method_args: {{queue_length: N}} with N "
                f"below {max(images - batch, 1)}"
            )

    def settling_steps(self, batch: int) -> int:
        return math.ceil(len(self.queue) / (2 * batch))  # the queue starts with random keys

    def before_step(self, progress: float, epoch: float) -> None:
        self._pending_keys.clear()  # left over if fp16 skipped the last step

    def after_step(self) -> None:
        self.teacher.ema_update(self.backbone, self.projector, self.momentum)
        for keys in self._pending_keys:
            self.enqueue(gather(keys))
        self._pending_keys.clear()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest keys of the queue by `keys`, N x D."""
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys.to(self.queue.dtype)
        self.pointer.copy_((self.pointer + len(keys)) % len(self.queue))
