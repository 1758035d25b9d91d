"""BYOL: Bootstrap Your Own Latent (Grill et al., NeurIPS 2020)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from hf_essl.config.fields import Count, Probability, checked
from hf_essl.methods.base import Pair, SSLModel, negative_cosine
from hf_essl.methods.heads import mlp
from hf_essl.methods.teacher import MomentumTeacher, cosine_momentum


class BYOL(SSLModel):
    """L = (2 - 2 cos(q1, k2)) + (2 - 2 cos(q2, k1)), with k from a momentum teacher (Eq. 2 of BYOL, symmetric).

    Args:
        projector_hidden: hidden size of the projector.
        projector_dim: D, the size of projections and predictions.
        predictor_hidden: hidden size of the predictor.
        momentum: tau of the teacher at the start of the run; it rises to 1 along a cosine.
    """

    title = "BYOL"
    description = "squared distance to a momentum teacher, with a predictor (Grill et al. 2020)"
    citation = r"""@inproceedings{grill2020bootstrap,
  title     = {Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning},
  author    = {Grill, Jean-Bastien and Strub, Florian and Altch{\'e}, Florent and Tallec, Corentin and others},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2020}
}"""
    small_args: ClassVar[dict[str, Any]] = {"projector_hidden": 24, "projector_dim": 16, "predictor_hidden": 24}
    has_teacher = True
    collapse_hint = "lower learning_rate, or raise momentum in method_args so that the teacher moves more slowly"
    minimized_by_collapse = True

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        projector_hidden: Count = 4096,
        projector_dim: Count = 256,
        predictor_hidden: Count = 4096,
        momentum: Probability = 0.99,
    ):
        super().__init__(backbone)
        self.base_momentum = self.momentum = momentum
        self.projector = mlp((self.num_features, projector_hidden, projector_dim))
        self.predictor = mlp((projector_dim, predictor_hidden, projector_dim))
        self.teacher = MomentumTeacher(self.backbone, self.projector)

    def embed(self, view: Tensor) -> Pair:
        z = self.projector(self.backbone(view))  # B x D
        return self.predictor(z), z

    def targets(self, views: Pair, keys: Pair) -> Pair:
        return self.teacher(views[0]), self.teacher(views[1])

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        (q1, q2), (k1, k2) = queries, keys  # B x D
        return 4 + 2 * negative_cosine(q1, k2) + 2 * negative_cosine(q2, k1)  # B

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        first = 2 + 2 * negative_cosine(queries[0], keys[1]).mean()
        return {"first_view": first, "second_view": losses.mean() - first}

    def loss_at_collapse(self, images: int) -> float:
        return 0.0

    def before_step(self, progress: float, epoch: float) -> None:
        self.momentum = cosine_momentum(self.base_momentum, progress)

    def after_step(self) -> None:
        self.teacher.ema_update(self.backbone, self.projector, self.momentum)
