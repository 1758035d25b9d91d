"""Two numbers that tell a healthy embedding from a collapsed one, without labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_std(z: Tensor) -> Tensor:
    """Standard deviation over the images of the l2-normalised embeddings, averaged over the dimensions.

    1 / sqrt(D) where the embeddings spread over the sphere, 0 where they collapsed to one point (SimSiam, Fig. 2).

    Args:
        z: embeddings, N x D, of any floating dtype; computed in float32.

    Returns:
        A scalar tensor on the device of `z`: reading it is left to the caller, since it waits for the device.

    Raises:
        ValueError: for another shape, or fewer than two embeddings.
    """
    _check(z)
    return F.normalize(z.float(), dim=1).std(dim=0).mean()


@torch.no_grad()
def rankme(z: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of the embeddings, between 1 and min(N, D): exp of the entropy of their singular values.

    Eq. 1 and 2 of RankMe (Garrido et al., ICML 2023). It needs N well above D to tell a full rank; a singular value
    decomposition, O(N D^2) in float32.

    Args:
        z: embeddings, N x D.
        eps: added to the normalised singular values, as published.

    Raises:
        ValueError: for another shape, fewer than two embeddings, or values that are not finite.
    """
    _check(z)
    if not torch.isfinite(z).all():
        raise ValueError("the embeddings hold values that are not finite; the model has diverged, lower learning_rate")
    singular_values = torch.linalg.svdvals(z.float())
    total = singular_values.sum()
    p = (singular_values / total if total > 0 else singular_values) + eps  # all embeddings zero: rank 1
    return torch.exp(-(p * p.log()).sum()).item()


def _check(z: Tensor) -> None:
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"the embeddings have shape {tuple(z.shape)}; it must be N x D with N at least 2")
