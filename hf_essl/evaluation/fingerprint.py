"""Which weights an evaluation saw: a digest that a checkpoint and its exported backbone share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict's names, types, shapes and bytes, wherever the tensors lie and in whatever order."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)  # bfloat16 too
    return digest.hexdigest()
