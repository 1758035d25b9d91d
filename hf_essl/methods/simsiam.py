"""SimSiam: Exploring Simple Siamese Representation Learning (Chen and He, CVPR 2021)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from hf_essl.config.fields import Count, checked
from hf_essl.methods.base import Pair, SSLModel, negative_cosine
from hf_essl.methods.heads import mlp


class SimSiam(SSLModel):
    """L = D(p1, stopgrad(z2)) / 2 + D(p2, stopgrad(z1)) / 2, with D the negative cosine (Eq. 1 and 2 of SimSiam).

    Args:
        projector_hidden: hidden size of the projector; by default the backbone's width, as published.
        projector_dim: D, the size of z and p.
        predictor_hidden: bottleneck of the predictor.
    """

    title = "SimSiam"
    description = "negative cosine with a predictor and a stopped gradient (Chen and He 2021)"
    citation = r"""@inproceedings{chen2021exploring,
  title     = {Exploring Simple Siamese Representation Learning},
  author    = {Chen, Xinlei and He, Kaiming},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021}
}"""
    small_args: ClassVar[dict[str, Any]] = {"projector_dim": 32, "predictor_hidden": 16}
    fixed_lr_modules = ("predictor",)
    collapse_hint = "lower learning_rate, warm it up, or set fix_predictor_lr: true"
    minimized_by_collapse = True

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        projector_hidden: Count | None = None,
        projector_dim: Count = 2048,
        predictor_hidden: Count = 512,
    ):
        super().__init__(backbone)
        hidden = projector_hidden or self.num_features
        # the last BatchNorm has no affine parameters: with them the published runs are unstable
        self.projector = mlp((self.num_features, hidden, hidden, projector_dim), last="plain_norm")
        self.predictor = mlp((projector_dim, predictor_hidden, projector_dim))

    def embed(self, view: Tensor) -> Pair:
        z = self.projector(self.backbone(view))  # B x D
        return self.predictor(z), z

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        (p1, p2), (z1, z2) = queries, keys  # B x D
        return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2  # B

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        first = negative_cosine(queries[0], keys[1]).mean() / 2
        return {"first_view": first, "second_view": losses.mean() - first}

    def loss_at_collapse(self, images: int) -> float:
        return -1.0
