"""Projector and predictor heads, shared by the methods."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import nn


def mlp(
    sizes: Sequence[int], *, norm: bool = True, last: Literal["bias", "norm", "plain_norm"] = "bias"
) -> nn.Sequential:
    """A multi-layer perceptron: Linear, BatchNorm, ReLU for each hidden size, then a last Linear.

    Args:
        sizes: input, hidden and output sizes, N x sizes[0] in, N x sizes[-1] out.
        norm: BatchNorm after each hidden layer (whose bias it replaces).
        last: what ends the head: `bias` a Linear with bias, `norm` a BatchNorm, `plain_norm` one without affine
            parameters.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=not norm)]
        layers += [nn.BatchNorm1d(fan_out)] if norm else []
        layers += [nn.ReLU(inplace=True)]
    layers += [nn.Linear(sizes[-2], sizes[-1], bias=last == "bias")]
    layers += [] if last == "bias" else [nn.BatchNorm1d(sizes[-1], affine=last == "norm")]
    return nn.Sequential(*layers)
