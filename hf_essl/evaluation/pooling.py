"""One vector per image from the tokens of a ViT: the class token, the mean of the patches, or both."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_essl.common import one_line, unknown
from hf_essl.methods.backbone import feature_size, own_size

POOLS = {
    "cls": "the class token",
    "mean": "the mean of the patches",
    "cls_mean": "the class token and the mean of the patches",
}


class PooledFeatures(nn.Module):
    """B x 3 x r x r to B x D of a timm ViT, after its last norm; twice as many for `cls_mean`.

    `mean` is the mean of `PatchFeatures`, up to a norm that the network has after its own pooling (`fc_norm`).

    Args:
        backbone: a timm network of tokens.
        pool: one of `POOLS`.
        layers: n, to concatenate the class tokens of the last n blocks, the last one at the end, as the linear
            evaluation of DINO does: 4 with `cls` for ViT-S, 1 with `cls_mean` for ViT-B.

    Raises ValueError for a network without such tokens or blocks.
    """

    def __init__(self, backbone: nn.Module, pool: str, layers: int = 1):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(unknown("pool", pool, POOLS))
        if layers > 1 and pool == "mean":
            raise ValueError(f"layers is {layers}, which concatenates class tokens; set --pool cls or cls_mean")
        _check_tokens(backbone, pool)
        self.backbone: Any = backbone
        self.pool, self.layers = pool, layers
        size = own_size(backbone)
        self.pretrained_cfg = {**getattr(backbone, "pretrained_cfg", {}), "input_size": (3, size, size)}
        try:
            feature_size(self)
        except ValueError as error:
            name = type(backbone).__name__
            raise ValueError(f"pool is {pool} with layers {layers}, which {name} lacks: {one_line(error)}") from error

    def forward(self, images: Tensor) -> Tensor:
        tokens = self._tokens(images)
        vectors = [prefix[:, 0] for _, prefix in tokens] if "cls" in self.pool else []
        vectors += [tokens[-1][0].mean(dim=1)] if "mean" in self.pool else []
        norm = getattr(self.backbone, "fc_norm", None) or nn.Identity()
        return torch.cat([norm(vector) for vector in vectors], dim=1)

    def _tokens(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Patches, B x N x D, and class and register tokens, B x T x D, of the last blocks."""
        if self.layers > 1:
            options: dict[str, Any] = {"norm": True, "return_prefix_tokens": True, "output_fmt": "NLC"}
            return self.backbone.forward_intermediates(images, indices=self.layers, intermediates_only=True, **options)
        features, count = self.backbone.forward_features(images), self.backbone.num_prefix_tokens
        return [(features[:, count:], features[:, :count])]


def _check_tokens(backbone: Any, pool: str) -> None:
    name = type(backbone).__name__
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "num_prefix_tokens"):
        raise ValueError(
            f"pool is {pool}, but {name} has no tokens and its own pooling; leave out --pool and --layers"
        )
    if "cls" in pool and getattr(backbone, "cls_token", None) is None:
        raise ValueError(f"pool is {pool}, but this {name} has no class token; set --pool mean, or leave it out")
