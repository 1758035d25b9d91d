"""LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics (Balestriero and LeCun 2025)."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from hf_essl.config.fields import Count, Positive, Probability, checked
from hf_essl.methods.base import Pair, SSLModel, full_precision
from hf_essl.methods.distributed import world_size
from hf_essl.methods.heads import mlp

SEEDS = 2**40  # different seeds of the directions in a run


class LeJEPA(SSLModel):
    """L = (1 - lambda) prediction + lambda SIGReg; there is no teacher, no predictor and no stopped gradient.

    The prediction loss is the mean squared distance of an image's views to the center of the pair. SIGReg compares the
    batch with an isotropic Gaussian along random directions, by the Epps-Pulley statistic (Sec. 4 of LeJEPA). The
    directions of an optimizer step follow from its place in the run: all processes and resumed runs draw the same.

    Gradient accumulation adds no images to the statistic; they come from one micro-batch of all processes.

    Args:
        projector_hidden: size of the projector's two hidden layers.
        projector_dim: D, the size of z.
        sigreg_weight: lambda, in [0, 1]; the only hyperparameter of the loss.
        directions: random directions per step.
        knots: points of the integral over the frequencies in [0, `largest_frequency`].
        largest_frequency: end of the integral.
    """

    uses_negatives = True
    pair_weight = 2.0  # the mean is over views
    title = "LeJEPA"
    description = "prediction loss and an isotropic Gaussian for all embeddings (Balestriero and LeCun 2025)"
    citation = r"""@article{balestriero2025lejepa,
  title   = {LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics},
  author  = {Balestriero, Randall and LeCun, Yann},
  journal = {arXiv preprint arXiv:2511.08544},
  year    = {2025}
}"""
    small_args: ClassVar[dict[str, Any]] = {"projector_hidden": 32, "projector_dim": 16, "directions": 32}
    collapse_hint = "lower learning_rate, raise sigreg_weight in method_args, or use a larger batch"
    vectors: Tensor
    frequencies: Tensor
    gaussian: Tensor
    weights: Tensor

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        projector_hidden: Count = 2048,
        projector_dim: Count = 64,
        sigreg_weight: Probability = 0.05,
        directions: Count = 1024,
        knots: Annotated[int, Field(ge=2)] = 17,
        largest_frequency: Positive = 3.0,
    ):
        super().__init__(backbone)
        self.sigreg_weight = sigreg_weight
        self.projector = mlp((self.num_features, projector_hidden, projector_hidden, projector_dim))
        frequencies = torch.linspace(0, largest_frequency, knots)
        gaussian = torch.exp(-frequencies.square() / 2)  # its characteristic function
        weights = torch.full((knots,), 2 * largest_frequency / (knots - 1))  # trapezoids, twice: the integrand is even
        weights[[0, -1]] /= 2
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("gaussian", gaussian, persistent=False)
        self.register_buffer("weights", weights * gaussian, persistent=False)
        self.register_buffer("vectors", _directions(projector_dim, directions, 0.0), persistent=False)

    def embed(self, view: Tensor) -> Pair:
        z = self.projector(self.backbone(view))  # B x D
        return z, z

    def targets(self, views: Pair, keys: Pair) -> Pair:
        return keys  # with their gradient: both views move to their center

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        with full_precision(queries[0]):
            regularizer = torch.stack([self.sigreg(query.float()) for query in queries]).mean()
            return (1 - self.sigreg_weight) * _prediction(queries, keys) + self.sigreg_weight * regularizer  # B

    def local_loss(self, queries: Tensor, keys: Pair) -> Tensor:
        with full_precision(queries):
            center = (keys[0].float() + keys[1].float()) / 2
            prediction = (queries.float() - center).square().mean(dim=-1)
            return (1 - self.sigreg_weight) * prediction + self.sigreg_weight * self.sigreg(queries.float())  # B

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        with full_precision(queries[0]):
            prediction = (1 - self.sigreg_weight) * _prediction(queries, keys).mean()
        return {"prediction": prediction, "sigreg": losses.mean() - prediction}

    def sigreg(self, embeddings: Tensor) -> Tensor:
        """The Epps-Pulley statistic of B x D embeddings of each process, the mean over the directions; a scalar."""
        angles = (embeddings @ self.vectors)[..., None] * self.frequencies  # B x directions x knots
        sums = torch.stack([angles.cos().sum(dim=0), angles.sin().sum(dim=0)])  # 2 x directions x knots
        if world_size() > 1:
            sums = all_reduce(sums)  # its backward pass sums too, and DDP then averages
        count = len(embeddings) * world_size()
        real, imaginary = sums / count
        error = (real - self.gaussian).square() + imaginary.square()
        return count * (error @ self.weights).mean()

    def before_step(self, progress: float, epoch: float) -> None:
        size, count = self.vectors.shape
        self.vectors.copy_(_directions(size, count, progress))


def _prediction(queries: Pair, keys: Pair) -> Tensor:
    """Mean squared distance of a view and the other one to their center, B x D each to B."""
    (q1, q2), (k1, k2) = ((first.float(), second.float()) for first, second in (queries, keys))
    return ((q1 - k2).square() + (q2 - k1).square()).mean(dim=-1) / 8


def _directions(size: int, count: int, progress: float) -> Tensor:
    """Random unit vectors, size x count, that depend on the place in the run alone."""
    generator = torch.Generator().manual_seed(round(progress * SEEDS))
    vectors = torch.randn(size, count, generator=generator)
    return vectors / vectors.norm(dim=0)
