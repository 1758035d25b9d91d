"""The frozen teacher of a distillation: any network, with its own weights, resolution and normalization."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.methods.backbone import accepted_arguments, feature_size, fingerprint, load_network, meta_backbone


class FrozenTeacher(nn.Module):
    """A network without gradient, always in evaluation mode; a state dict holds only the hash of its weights.

    Loading a state with the hash of other weights raises ValueError.

    Args:
        backbone: B x 3 x r x r to B x D.
        resolution: r in pixels, to which the views are resized; None leaves them as they are.
        mean, std: per channel, with which the views are normalized; the network gets them with its own.
    """

    digest: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: nn.Module, resolution: int | None, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.backbone, self.resolution, self.num_features = backbone, resolution, feature_size(backbone)
        own = resolve_model_data_config(backbone)
        theirs, ours = torch.tensor([mean, std]), torch.tensor([own["mean"], own["std"]])
        self.register_buffer("scale", (theirs[1] / ours[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((theirs[0] - ours[0]) / ours[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("digest", _digest(backbone))
        self.register_state_dict_post_hook(_drop_weights)
        self.register_load_state_dict_pre_hook(_check_weights)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls,
        name: str,
        pretrained: bool,
        resolution: int | Literal["view"] | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> Self:
        """The teacher of a name; see `hf_essl.methods.sources`.

        Args:
            pretrained: False for random weights, the same ones each time.
            resolution: in pixels; None for the network's own, view for that of each view.

        Raises ValueError for a network or a resolution that cannot work, and for weights that cannot be loaded.
        """
        on_meta = torch.empty(0).is_meta  # a device context, in which nothing is loaded
        own: int = resolve_model_data_config(meta_backbone(name, {}))["input_size"][-1]
        sizes = (own,) if resolution is None else _any_size(name, own) if resolution == "view" else (resolution,)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = load_network(name, pretrained and not on_meta, resolutions=sizes)
        return cls(backbone, None if resolution == "view" else sizes[0], mean, std)

    @property
    def side(self) -> int:
        """In pixels, of all that it sees; not for a teacher that sees each view at the view's own size."""
        assert self.resolution is not None, "`Distill` has checked"
        return self.resolution

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        """Features of normalized views of any size: B x 3 x s x s to float32 B x D."""
        size = self.resolution or view.shape[-1]
        if view.shape[-1] != size:
            view = F.interpolate(view.float(), size=(size, size), mode="bilinear", antialias=True)
        return self.backbone(view * self.scale + self.shift).float()


def _any_size(name: str, own: int) -> tuple[int, ...]:
    """Its own size and half of it. Raises ValueError for a network that does not accept both."""
    sizes = (own, own // 2)
    try:
        accepted_arguments(name, {}, sizes)
    except ValueError:
        raise ValueError(
            f"teacher_resolution is view, but {name} accepts only its own {own} px; leave teacher_resolution out"
        ) from None
    return sizes


def _digest(backbone: nn.Module) -> Tensor:
    """The SHA-256 of the weights, 32 bytes."""
    state = backbone.state_dict()
    if any(value.is_meta for value in state.values()):
        return torch.zeros(32, dtype=torch.uint8)
    return torch.tensor(list(bytes.fromhex(fingerprint(state))), dtype=torch.uint8)


def _drop_weights(teacher: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}backbone.")]:
        del state[name]


def _check_weights(teacher: Any, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Compares the hash, and completes the state by the teacher's own weights, which are then not missing."""
    saved = state.get(f"{prefix}digest")
    if saved is not None and not torch.equal(saved.cpu(), teacher.digest.cpu()):
        there, here = (bytes(digest.tolist()).hex()[:12] for digest in (saved, teacher.digest))
        raise ValueError(
            f"the teacher has other weights than the one that the training began with (SHA-256 {here}… instead of "
            f"{there}…); give the same teacher, or start over"
        )
    state.update({f"{prefix}backbone.{name}": value for name, value in teacher.backbone.state_dict().items()})
