"""Which patch tokens of a view a ViT keeps: sampled once with the view, for any number of patches."""

import torch
from torch import Tensor

BITS = 32  # of a seed and of a hash
POSITIONS = 2**20  # more patches than an image has; makes the keys of an image different


def kept_count(patches: int, share: float) -> int:
    """K, the kept ones of L patch tokens: rounded down as in timm's PatchDropout, at least 1."""
    return max(1, int(patches * share + 1e-9))


def kept_tokens(seeds: Tensor, patches: int, share: float) -> Tensor:
    """Positions of the kept patch tokens, int64 N x K in [0, L), ascending, by the seeds of N views.

    The same seed keeps the same tokens on any device, in any batch. With a larger share it keeps them and others.
    """
    positions = torch.arange(patches, device=seeds.device)
    keys = _mixed(seeds[:, None] ^ _mixed(positions + 1)) * POSITIONS + positions  # N x L
    return keys.topk(kept_count(patches, share), largest=False).indices.sort(dim=1).values


def _mixed(x: Tensor) -> Tensor:
    """A hash of integers in [0, 2^32): rounds of a shift and a product, which stays below 2^63."""
    for _ in range(3):
        x = ((x >> 16) ^ x) * 0x45D9F3B & (2**BITS - 1)
    return (x >> 16) ^ x
