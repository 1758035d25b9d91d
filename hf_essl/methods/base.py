"""The contract of a self-supervised method: a backbone, its heads, a per-image loss, and what changes after a step.

A method is one file with one subclass of `SSLModel` and one line in `hf_essl.methods.METHODS`. It declares `title`,
`description`, `citation` and `small_args`, and defines

- `projector`: the module that takes the backbone's features; the online probe reads them there;
- `embed(view)`: the student's query and key of one view; Hard Augment's selection pass calls it too;
- `loss(queries, keys)`: one loss per image from the queries and the target keys of the two views.

It may also define

- `loss_components(queries, keys, losses)`: parts of the loss, for the log only;
- `targets(...)`: target keys that do not come from the student (a momentum teacher);
- `before_step(progress, epoch)`: a quantity with its own schedule (tau, teacher temperature);
- `after_step()`: persistent state updates (teacher, queue, center); the loss itself changes nothing.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.common import nearest, unknown
from hf_essl.config import ModelArguments

Pair = tuple[Tensor, Tensor]


class SSLModel(nn.Module):
    """A backbone with the heads and the loss of one self-supervised method.

    Args:
        backbone: a timm model built with `num_classes=0`: B x 3 x r x r in, B x num_features out.
    """

    title: ClassVar[str]
    """How people write the method's name, such as MoCo v2+."""
    description: ClassVar[str]
    """One line for help and README: the loss, and the paper."""
    citation: ClassVar[str] = ""
    """BibTeX of the paper."""
    small_args: ClassVar[dict[str, Any]] = {}
    """`method_args` with heads small enough for tests."""
    has_teacher = False
    """Whether a momentum teacher also runs forward on both views."""
    fixed_lr_modules: tuple[str, ...] = ()
    """Submodules whose learning rate may be held constant (`fix_predictor_lr`)."""
    sync_batchnorm = True
    """Whether BatchNorm may use the statistics of all processes (`sync_batchnorm` of the training arguments)."""
    clears_gradients = False
    """Whether `after_backward` sets gradients to None, which torch's fused SGD does not support."""
    collapse_hint = "lower learning_rate"
    """What to try first if the embedding collapses, for the alarm."""
    config: ModelArguments | None = None
    """The arguments of `from_timm`; None for a model that was built by hand."""
    projector: nn.Module
    _keys_to_ignore_on_save = None  # transformers.Trainer reads it when a resumed checkpoint lacks a key

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.num_features: int = backbone.num_features  # type: ignore[assignment]
        data = resolve_model_data_config(backbone)
        self.pixel_mean: tuple[float, ...] = data["mean"]
        self.pixel_std: tuple[float, ...] = data["std"]

    @classmethod
    def cost_factor(cls) -> float:
        """Cost of a step relative to SimSiam's, in the paper's convention: a teacher's forward pass adds a half."""
        return 1.5 if cls.has_teacher else 1.0

    @staticmethod
    def from_timm(
        backbone: str,
        method: str = "simsiam",
        *,
        pretrained: bool = False,
        backbone_args: dict | None = None,
        method_args: dict | None = None,
    ) -> SSLModel:
        """Builds a method over a timm backbone, by their names.

        Raises:
            ValueError: for an unknown backbone, method or method argument, with the nearest that exist.
        """
        check_method(method, method_args or {})
        check_backbone(backbone)
        model = METHODS[method](build_backbone(backbone, pretrained, backbone_args or {}), **(method_args or {}))
        model.config = ModelArguments(backbone, method, backbone_args or {}, method_args or {}, pretrained)
        return model

    def embed(self, view: Tensor) -> Pair:
        """The student's query and key of one view: B x 3 x r x r to B x D and B x D."""
        raise TypeError(f"{type(self).__name__} must define embed(view)")

    def targets(self, views: Pair, keys: Pair) -> Pair:
        """The keys that the queries are drawn to, B x D each, without gradient; by default the student's own."""
        return keys[0].detach(), keys[1].detach()

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        """The loss of each image, B, from the queries and target keys of both views, B x D each."""
        raise TypeError(f"{type(self).__name__} must define loss(queries, keys)")

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        """What the loss is made of: scalars by name whose sum is the mean of `losses`, logged as `loss_<name>`.

        Called without gradient at each forward pass, with what `loss` took and the B losses that it gave; the scalars
        stay on the device. By default there are none.
        """
        return {}

    def forward(self, first: Tensor, second: Tensor, extra: Tensor | None = None) -> dict[str, Any]:
        """From two views, B x 3 x r x r each: `loss` of each image, B; `embedding`, the first view's key, B x D,
        without gradient; and `loss_components` of the pair's loss.

        Extra targets, B x t x D, are keys of further views of the same images (Table 9): each is a target of both
        queries, and the loss is the mean over the pair and them.

        Both views go through one call, since two DDP forwards before a backward break BatchNorm; the encoder still
        sees one view a batch.
        """
        (first_query, first_key), (second_query, second_key) = self.embed(first), self.embed(second)
        keys = self.targets((first, second), (first_key, second_key))
        queries = (first_query, second_query)
        losses = [self.loss(queries, keys)]
        with torch.no_grad():
            components = self.loss_components(queries, keys, losses[0])
        losses += [self.loss(queries, (key, key)) for key in (() if extra is None else extra.unbind(dim=1))]
        return {
            "loss": torch.stack(losses).mean(dim=0),
            "embedding": first_key.detach(),
            "loss_components": components,
        }

    def loss_at_collapse(self, images: int) -> float | None:
        """The loss of a network that maps all images to one point, in a batch of `images` over all processes."""
        return None

    def check_data(self, images: int, batch: int) -> None:
        """Raises ValueError where the method cannot train on so many images in batches of this size."""

    def before_step(self, progress: float, epoch: float) -> None:
        """Called once before the forward pass of each optimizer step, k of K.

        Args:
            progress: k / K, in [0, 1).
            epoch: progress in epochs of `num_train_epochs`.
        """

    def after_backward(self) -> None:
        """Called once an optimizer step, when the gradients are whole and clipped and nothing has moved."""

    def after_step(self) -> None:
        """Called once after each optimizer step; not after one that fp16 skipped."""


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context in which no autocast touches operations on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def negative_cosine(queries: Tensor, keys: Tensor) -> Tensor:
    """-cos of matching rows in float32 whatever the autocast: B x D and B x D to B."""
    return -(F.normalize(queries.float(), dim=-1) * F.normalize(keys.float(), dim=-1)).sum(dim=-1)


def contrastive_components(queries: Pair, keys: Pair, losses: Tensor, temperature: float) -> dict[str, Tensor]:
    """InfoNCE, the mean of both directions, in two: -cos / t of the positives, and the log-sum-exp over candidates.

    Args:
        queries, keys: B x D each; a query and the other view's key are a positive pair.
        losses: of each image, B.
        temperature: t.
    """
    cosines = negative_cosine(queries[0], keys[1]) + negative_cosine(queries[1], keys[0])
    alignment = cosines.mean() / (2 * temperature)
    return {"alignment": alignment, "uniformity": losses.mean() - alignment}


def build_backbone(name: str, pretrained: bool = False, backbone_args: dict | None = None) -> nn.Module:
    """A timm model without its classifier, able to run at any resolution (ViTs by interpolated positions)."""
    arguments = {"num_classes": 0, "pretrained": pretrained, **(backbone_args or {})}
    try:
        return timm.create_model(name, dynamic_img_size=True, **arguments)
    except TypeError:  # not a ViT: the argument is unknown to it
        return timm.create_model(name, **arguments)


def check_backbone(name: str) -> None:
    """Raises ValueError where timm has no such model."""
    if timm.is_model(name.split(".")[0]):
        return
    near = nearest(name, timm.list_models(), 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
    raise ValueError(f"backbone is {name!r}, which is not a timm model; {hint}")


def check_method(name: str, arguments: dict) -> None:
    """Raises ValueError for an unknown method, and for an argument that the method does not take."""
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    known = list(inspect.signature(METHODS[name].__init__).parameters)[2:]
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"method_args holds {argument!r}, unknown to {name}; it takes {', '.join(known)}")


def method_name(model: SSLModel) -> str:
    """The name of a model's method in `METHODS`; its class name if it is not in the table."""
    return next((name for name, known in METHODS.items() if type(model) is known), type(model).__name__.lower())


METHODS: dict[str, type[SSLModel]] = {}
"""The methods by name; `hf_essl.methods` fills it."""
