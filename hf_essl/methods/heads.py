"""Projector and predictor heads, shared by the methods."""

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import nn


def mlp(
    sizes: Sequence[int], *, norm: bool = True, last: Literal["bias", "norm", "plain_norm"] = "bias"
) -> nn.Sequential:
    """A multi-layer perceptron, N x sizes[0] to N x sizes[-1]: Linear, BatchNorm, ReLU per hidden size, then Linear.

    Args:
        norm: use BatchNorm after each hidden layer, which replaces its bias.
        last: how the head ends: a Linear with `bias`, a BatchNorm (`norm`), or one without affine parameters
            (`plain_norm`).
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=not norm)]
        layers += [nn.BatchNorm1d(fan_out)] if norm else []
        layers += [nn.ReLU(inplace=True)]
    layers += [nn.Linear(sizes[-2], sizes[-1], bias=last == "bias")]
    layers += [] if last == "bias" else [nn.BatchNorm1d(sizes[-1], affine=last == "norm")]
    return nn.Sequential(*layers)
