"""Patch tokens that a ViT drops before its first block, so that its passes cost less.

timm's PatchDropout draws the kept tokens itself, at one rate. Here they are given, image by image: a view has the same
ones in any pass, in any process and after a resume.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from hf_essl.compat import patch_dropout_kind
from hf_essl.methods.meta import isolated, meta_copy, meta_views


class TokenDropout(nn.Module):
    """In the place of timm's PatchDropout: passes on the patch tokens of `kept`, or all of them while it is None.

    Args:
        prefix: class and register tokens before the patches, which always pass.
        returns_kept: whether the network asks for `kept` too, for its rotary embedding.
    """

    def __init__(self, prefix: int, returns_kept: bool):
        super().__init__()
        self.prefix, self.returns_kept = prefix, returns_kept
        self.kept: Tensor | None = None  # int64 B x K, or 1 x K for all images
        self.patches: dict[int, int] = {}  # by resolution, as far as it was asked for

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        kept = self.kept
        if kept is not None:
            kept = kept.expand(len(x), -1)
            patches = x[:, self.prefix :].gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, : self.prefix], patches], dim=1)  # B x (prefix + K) x C
        return (x, kept) if self.returns_kept else x


def install_token_dropout(backbone: nn.Module) -> None:
    """Puts a `TokenDropout` into a timm ViT, in place; other networks, and those with PatchDropout, do not change."""
    kind = patch_dropout_kind(backbone)
    if kind is not None and not isinstance(backbone.patch_drop, TokenDropout):
        backbone.patch_drop = TokenDropout(int(backbone.num_prefix_tokens), kind == "rotary")  # type: ignore[arg-type]


def check_tokens(backbone: nn.Module, resolutions: Iterable[int]) -> None:
    """Raises ValueError unless a network can drop patch tokens at each resolution."""
    install_token_dropout(backbone)
    if not isinstance(getattr(backbone, "patch_drop", None), TokenDropout):
        raise ValueError(_reason(backbone))
    for resolution in resolutions:
        patch_count(backbone, resolution)


def patch_count(backbone: nn.Module, resolution: int) -> int:
    """L, the patch tokens of one image of `resolution` pixels; measured once, by a pass on the meta device."""
    known: dict[int, int] = backbone.patch_drop.patches  # type: ignore[union-attr, assignment]
    if resolution not in known:
        network = meta_copy(backbone)
        shapes: list[torch.Size] = []
        dropout: TokenDropout = network.patch_drop  # type: ignore[assignment]
        dropout.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
        with isolated(), torch.no_grad():
            network(meta_views(resolution))
        known[resolution] = shapes[0][1] - dropout.prefix
    return known[resolution]


@contextmanager
def keep_tokens(backbones: nn.Module | Iterable[nn.Module], kept: Tensor | None) -> Iterator[None]:
    """A context in which backbones see the patch tokens of `kept` alone, int64 B x K or 1 x K; None: all of them."""
    networks = [backbones] if isinstance(backbones, nn.Module) else backbones
    dropouts: list = [] if kept is None else [network.patch_drop for network in networks]
    for dropout in dropouts:
        dropout.kept = kept.contiguous()  # type: ignore[union-attr]  # other strides would be compiled again
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.kept = None


def _reason(backbone: nn.Module) -> str:
    name = type(backbone).__name__
    if isinstance(getattr(backbone, "patch_drop", None), (PatchDropout, PatchDropoutWithIndices)):
        return f"backbone_args contains patch_drop_rate, with which {name} drops tokens of its own; remove it"
    return (
        f"{name} cannot drop patch tokens: its convolutions, windows or relative positions need the whole image; "
        f"leave it out, or choose a plain ViT of timm, such as vit_tiny_patch16_224"
    )
