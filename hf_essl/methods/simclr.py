"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020)."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.config.fields import Count, Positive, checked
from hf_essl.methods.base import Pair, SSLModel, contrastive_components, full_precision
from hf_essl.methods.distributed import gather_with_gradient, rank
from hf_essl.methods.heads import mlp


class SimCLR(SSLModel):
    """NT-Xent over the views of all W processes (Eq. 1 of SimCLR): 2WB - 2 negatives per view.

    Gradient accumulation adds no negatives; they come from one micro-batch.

    Args:
        projector_hidden: hidden size of the projector; by default the backbone's width.
        projector_dim: D, the size of z.
        temperature: of the softmax over similarities.
    """

    uses_negatives = True
    title = "SimCLR"
    description = "NT-Xent against the other views of the batch (Chen et al. 2020)"
    citation = r"""@inproceedings{chen2020simple,
  title     = {A Simple Framework for Contrastive Learning of Visual Representations},
  author    = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2020}
}"""
    small_args: ClassVar[dict[str, Any]] = {"projector_dim": 16}
    collapse_hint = "lower learning_rate, raise temperature in method_args, or use a larger batch"

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        projector_hidden: Count | None = None,
        projector_dim: Count = 128,
        temperature: Positive = 0.1,
    ):
        super().__init__(backbone)
        self.temperature = temperature
        self.projector = mlp((self.num_features, projector_hidden or self.num_features, projector_dim), last="norm")

    def embed(self, view: Tensor) -> Pair:
        z = self.projector(self.backbone(view))  # B x D
        return z, z

    def targets(self, views: Pair, keys: Pair) -> Pair:
        return keys  # with their gradient: both views of a pair move

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        with full_precision(queries[0]):
            z1, z2 = (F.normalize(q.float(), dim=1) for q in queries)  # B x D
            all1, all2 = (gather_with_gradient(F.normalize(k.float(), dim=1)) for k in keys)  # WB x D
            return (self._nt_xent(z1, all1, all2) + self._nt_xent(z2, all2, all1)) / 2  # B

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        return contrastive_components(queries, keys, losses, self.temperature)

    def _nt_xent(self, anchors: Tensor, same_view: Tensor, other_view: Tensor) -> Tensor:
        """Cross-entropy of each anchor's partner in the other view against all other views, B."""
        position = rank() * len(anchors) + torch.arange(len(anchors), device=anchors.device)
        itself = torch.arange(len(same_view), device=anchors.device) == position[:, None]  # B x WB
        same = (anchors @ same_view.T).masked_fill(itself, -torch.inf)
        logits = torch.cat([anchors @ other_view.T, same], dim=1) / self.temperature  # B x 2WB
        return F.cross_entropy(logits, position, reduction="none")

    def loss_at_collapse(self, images: int) -> float:
        return math.log(2 * images - 1)
