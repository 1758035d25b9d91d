"""Features of an image's patches: the tokens of a ViT, or the places of a convolutional network's last map."""

import torch
from torch import Tensor, nn

from hf_essl.common import one_line


class PatchFeatures(nn.Module):
    """B x 3 x r x r to B x N x D, the features before pooling; N patches row by row, without class or register tokens.

    Args:
        backbone: a timm network.
        resolution: r, for which `grid`, the rows and columns of patches, is measured.

    Raises ValueError for a network without such features.
    """

    def __init__(self, backbone: nn.Module, resolution: int):
        super().__init__()
        self.backbone = backbone
        try:
            with torch.inference_mode():
                features = backbone.forward_features(torch.zeros(1, 3, resolution, resolution))  # type: ignore[operator]
            self.layout = _layout(backbone, features)
            count = self._flattened(features).shape[1]
        except (AttributeError, RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"{type(backbone).__name__} has no patch features at {resolution} px ({one_line(error)}); leave out "
                f"--patches, or choose a ViT or a convolutional network of timm"
            ) from error
        side = round(count**0.5)
        self.grid = (side, side) if side * side == count else (1, count)

    def forward(self, images: Tensor) -> Tensor:
        return self._flattened(self.backbone.forward_features(images))  # type: ignore[operator]

    def _flattened(self, features: Tensor) -> Tensor:
        if self.layout == "tokens":
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        return features.flatten(1, 2) if self.layout == "NHWC" else features.flatten(2).transpose(1, 2)


def _layout(backbone: nn.Module, features: Tensor) -> str:
    """`tokens` (B x T x D), `NHWC` or `NCHW`, the axes of the features before pooling."""
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError("it returns neither tokens nor a map")
    if features.ndim == 3:
        return "tokens"
    return "NHWC" if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else "NCHW"


def check_pool(pool: str | None, patches: bool) -> None:
    """Raises ValueError if features of patches should be pooled too."""
    if patches and pool is not None:
        raise ValueError(f"pool is {pool}, but --patches asks for the features before pooling; leave out one of them")
