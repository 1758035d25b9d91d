"""The contract of a self-supervised method: a backbone, its heads and a per-image loss.

To add a method, write one file with a subclass of `SSLModel` and add one line to `hf_essl.methods.METHODS`. The class
declares `title`, `description`, `citation` and `small_args`, and defines `projector`, `embed` and `loss`. It may also
override `targets`, `embedding`, `loss_components`, `before_step` and `after_step`.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.common import unknown
from hf_essl.config import ModelArguments
from hf_essl.config.fields import check_arguments_of
from hf_essl.methods.backbone import check_backbone, check_resolutions, feature_size, freeze_unused, load_network
from hf_essl.methods.checkpointing import checkpoint_activations
from hf_essl.methods.frozen_teacher import FrozenTeacher
from hf_essl.methods.pretrained import PretrainedMethod
from hf_essl.methods.sources import OWN
from hf_essl.methods.teacher import MomentumTeacher
from hf_essl.methods.tokens import install_token_dropout, keep_tokens

Pair = tuple[Tensor, Tensor]


class SSLModel(nn.Module, PretrainedMethod):
    """A backbone, B x 3 x r x r to B x num_features, with the heads and the loss of one method.

    Raises ValueError for a backbone that does not return one vector per image.
    """

    title: ClassVar[str]  # in prose, such as MoCo v2+
    description: ClassVar[str]  # one line for help and README: the loss and the paper
    citation: ClassVar[str] = ""  # BibTeX of the paper
    small_args: ClassVar[dict[str, Any]] = {}  # `method_args` with heads small enough for tests
    network_args: ClassVar[tuple[str, ...]] = ()  # those of `method_args` that name further networks
    has_teacher = False  # whether a momentum teacher also runs forward on both views
    fixed_lr_modules: tuple[str, ...] = ()  # submodules whose learning rate may be constant (`fix_predictor_lr`)
    pair_weight = 1.0  # of the pair's loss beside that of each local view, in the mean of a multi-crop step
    compares_own_key = False  # whether the loss compares a view's query with its own key, not with the other view's
    uses_negatives = False  # whether the loss compares the images of a batch with each other
    sync_batchnorm = True  # whether BatchNorm may use the statistics of all processes
    frozen_epochs: float = 0.0  # epochs at the start in which some parameters do not train
    clears_gradients = False  # whether `after_backward` sets gradients to None, which fused SGD does not support
    lowest_rank = 0.75  # of the features' RankMe at random initialization, which training raises; below it, an alarm
    collapse_hint = "lower learning_rate"  # what to try first if the embedding collapses
    minimized_by_collapse = False  # whether a collapsed network has the lowest possible loss
    config: ModelArguments | None = None  # of `from_timm` or `from_module`; None for a model built by hand
    resolutions: tuple[int, ...] = ()  # those that `from_timm` built and checked the backbone for
    projector: nn.Module  # the head on the backbone; the online probe reads the features that enter it
    image_targets: Tensor | None = None  # B x D, what `image_teacher` says about the batch's images
    _keys_to_ignore_on_save = None  # transformers.Trainer reads it if a resumed checkpoint lacks a key

    def __init__(self, backbone: nn.Module):
        super().__init__()
        install_token_dropout(backbone)  # before a method copies it for its teacher
        self.backbone = backbone
        self.num_features = feature_size(backbone)
        data = resolve_model_data_config(backbone)
        self.pixel_mean: tuple[float, ...] = data["mean"]
        self.pixel_std: tuple[float, ...] = data["std"]

    @classmethod
    def cost_factor(cls) -> float:
        """Cost of a step relative to SimSiam's, by the paper's convention: the teacher's forward pass adds a half."""
        return 1.5 if cls.has_teacher else 1.0

    @staticmethod
    def from_timm(
        backbone: str,
        method: str = "simsiam",
        *,
        pretrained: bool = False,
        backbone_args: dict | None = None,
        method_args: dict | None = None,
        resolutions: Iterable[int] = (),
    ) -> "SSLModel":
        """Builds a method on a backbone, by their names.

        Args:
            backbone: a timm model, a folder with an exported backbone, or a model of another library with its prefix:
                torchvision:resnet18, transformers:ORG/NAME; see `hf_essl.methods.sources`.
            resolutions: sides in pixels of all views and evaluation images, such as `ViewArguments.resolutions`. Many
                transformers need them, because they accept only the image size that they are built for.

        Raises ValueError for an unknown backbone, method or argument of one of them, the message lists valid ones; and
        for resolutions that the backbone does not accept, and for weights that cannot be loaded.
        """
        config = ModelArguments(backbone, method, backbone_args or {}, method_args or {}, pretrained)
        check_method(method, config.method_args)
        check_backbone(backbone, pretrained)
        check_networks(method, config.method_args)
        sizes = tuple(resolutions)
        network = load_network(backbone, pretrained, config.backbone_args, sizes)
        return _with_method(network, config, sizes)

    @staticmethod
    def from_module(
        network: nn.Module,
        method: str = "simsiam",
        *,
        method_args: dict | None = None,
        resolutions: Iterable[int] = (),
    ) -> "SSLModel":
        """Builds a method on any network that maps B x 3 x r x r to B x D.

        Its pixels are normalized with ImageNet's statistics, unless it has a `pretrained_cfg` as timm's models do,
        with `mean`, `std` and `input_size`.

        Raises ValueError as `from_timm` does.
        """
        name = f"{OWN}{type(network).__module__}.{type(network).__qualname__}"
        config = ModelArguments(name, method, {}, method_args or {})
        check_method(method, config.method_args)
        check_networks(method, config.method_args)
        sizes = tuple(resolutions)
        if sizes:
            check_resolutions(network, sizes)
        return _with_method(network, config, sizes)

    def embed(self, view: Tensor) -> Pair:
        """The student's query and key of one view, B x 3 x r x r to B x D each; the selection pass calls it too."""
        raise TypeError(f"{type(self).__name__} must define embed(view)")

    def embed_tokens(self, view: Tensor, kept: Tensor | None) -> Pair:
        """`embed` with the patch tokens of `kept` alone, int64 B x K; None: all."""
        with keep_tokens(self.backbone, kept):
            return self.embed(view)

    @property
    def teachers(self) -> list[MomentumTeacher]:
        """The momentum teachers of the method."""
        return [module for module in self.children() if isinstance(module, MomentumTeacher)]

    @property
    def image_teacher(self) -> FrozenTeacher | None:
        """A frozen network that sees each whole image once, instead of views; `show_images` hands out its features."""
        return None

    @contextmanager
    def show_images(self, targets: Tensor | None) -> Iterator[None]:
        """A context for the passes of one batch, whose images have these features of the `image_teacher`, B x D."""
        self.image_targets = targets
        try:
            yield
        finally:
            self.image_targets = None

    def targets(self, views: Pair, keys: Pair) -> Pair:
        """The target keys of both views, B x D each; by default the student's keys without gradient."""
        return keys[0].detach(), keys[1].detach()

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        """The loss of each image, B, from queries and target keys, B x D per view. It changes no state."""
        raise TypeError(f"{type(self).__name__} must define loss(queries, keys)")

    def embedding(self, queries: Pair, keys: Pair) -> Tensor:
        """What the alarms watch for a collapse, B x D: the first view's key. Called without gradient."""
        return keys[0]

    def local_queries(self, views: Tensor) -> Tensor:
        """The student's queries of local views, B x 3 x s x s to B x D."""
        return self.embed(views)[0]

    def local_loss(self, queries: Tensor, keys: Pair) -> Tensor:
        """The loss of one local view, B, from its queries and the pair's target keys, B x D each.

        By default `loss` with the local view in place of both: the mean over the two targets.
        """
        return self.loss((queries, queries), keys)

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        """The parts of `losses`, B, by name: scalars on the device that sum to its mean, logged as `loss_<name>`.

        Called without gradient, with the arguments and the result of `loss`.
        """
        return {}

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        extra: Tensor | None = None,
        tokens: Tensor | None = None,
        teacher_tokens: Tensor | None = None,
        local: Tensor | None = None,
    ) -> dict[str, Any]:
        """`loss` of each image, B; `embedding`, B x D without gradient; and `loss_components`.

        One call for all views, because two DDP forwards before a backward break BatchNorm. The backbone sees the first
        and the second view in a batch each, and all local views in one batch, as in DINO.

        Args:
            first, second: two views, B x 3 x r x r each.
            extra: keys of t more views (Table 9), B x t x D; the loss is the mean over the pair and, for each of
                these keys, the loss with it as the target of both queries.
            tokens: the patch tokens that the student sees of each view, int64 B x 2 x K; None: all.
            teacher_tokens: those that a momentum teacher sees, 1 x K, the same of all images; None: all.
            local: n local views (multi-crop), n x B x 3 x s x s, which only the student sees, with all tokens. The
                loss is the mean over the pair, with `pair_weight`, and the `local_loss` of each. The components are
                those of the pair, and the mean of the local views' losses.
        """
        kept = (None, None) if tokens is None else tokens.unbind(dim=1)
        (q1, k1), (q2, k2) = self.embed_tokens(first, kept[0]), self.embed_tokens(second, kept[1])  # B x D each
        with keep_tokens([teacher.backbone for teacher in self.teachers], teacher_tokens):
            queries, keys = (q1, q2), self.targets((first, second), (k1, k2))
        losses = [self.loss(queries, keys)]
        with torch.no_grad():
            components = self.loss_components(queries, keys, losses[0])
            embedding = self.embedding((q1, q2), (k1, k2)).detach()
        losses += [self.loss(queries, (key, key)) for key in (() if extra is None else extra.unbind(dim=1))]
        loss = torch.stack(losses).mean(dim=0)
        if local is not None:
            from_local = self._local_losses(local, keys)  # n x B
            loss = (self.pair_weight * loss + from_local.sum(dim=0)) / (self.pair_weight + len(local))
            components["local_views"] = from_local.detach().mean()
        return {"loss": loss, "embedding": embedding, "loss_components": components}

    def _local_losses(self, local: Tensor, keys: Pair) -> Tensor:
        """The losses of n local views, n x B x 3 x s x s to n x B."""
        queries = self.local_queries(local.flatten(0, 1))  # nB x D
        return torch.stack([self.local_loss(query, keys) for query in queries.unflatten(0, local.shape[:2])])

    def loss_at_collapse(self, images: int) -> float | None:
        """The loss if all images map to one point, for a batch of `images` over all processes; None if unknown."""
        return None

    def check_data(self, images: int, batch: int) -> None:
        """Raises ValueError if the method cannot train on this many images in batches of this size."""

    def settling_steps(self, batch: int) -> int:
        """Steps of `batch` images after which the method's state, such as a queue or a center, fits its network."""
        return 0

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Recomputes the student's activations in the backward pass (timm's gradient checkpointing).

        transformers' Trainer calls it for `gradient_checkpointing: true`. Raises ValueError for a backbone without
        checkpointing, and for options that timm does not have.
        """
        options = {"every_n_layers": every_n_layers, "offload": offload, **(activation_checkpointing_kwargs or {})}
        checkpoint_activations(self.backbone, options)

    def before_step(self, progress: float, epoch: float) -> None:
        """Called once per optimizer step, before the forward pass, to set tau or a temperature.

        Args:
            progress: finished share of the run, in [0, 1).
            epoch: the same in epochs.
        """

    def after_backward(self) -> None:
        """Called once per optimizer step, after gradients are accumulated and clipped, before parameters change."""

    def after_step(self) -> None:
        """Called once after each optimizer step that fp16 did not skip, to update teacher, queue or center."""


def _with_method(network: nn.Module, config: ModelArguments, sizes: tuple[int, ...]) -> SSLModel:
    freeze_unused(network)
    model = METHODS[config.method](network, **config.method_args)
    model.config, model.resolutions = config, sizes
    return model


METHODS: dict[str, type[SSLModel]] = {}  # the methods by name; `hf_essl.methods` fills it


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def negative_cosine(queries: Tensor, keys: Tensor) -> Tensor:
    """-cos of matching rows, in float32 under any autocast: B x D and B x D to B."""
    return -(F.normalize(queries.float(), dim=-1) * F.normalize(keys.float(), dim=-1)).sum(dim=-1)


def contrastive_components(queries: Pair, keys: Pair, losses: Tensor, temperature: float) -> dict[str, Tensor]:
    """`loss_components` of a symmetric InfoNCE loss: -cos / temperature of positive pairs, and the log-sum-exp."""
    cosines = negative_cosine(queries[0], keys[1]) + negative_cosine(queries[1], keys[0])
    alignment = cosines.mean() / (2 * temperature)
    return {"alignment": alignment, "uniformity": losses.mean() - alignment}


def check_method(name: str, arguments: dict) -> None:
    """Raises ValueError for an unknown method, or for an argument that the method does not accept."""
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    parameters = dict(list(inspect.signature(METHODS[name].__init__).parameters.items())[2:])
    known = list(parameters)
    for argument, parameter in parameters.items():
        if parameter.default is parameter.empty and argument not in arguments:
            raise ValueError(f"method is {name}, which needs {argument}; set method_args: {{{argument}: …}}")
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"method_args contains {argument!r}, which {name} does not accept; choose from {', '.join(known)}"
            )
    try:
        check_arguments_of(METHODS[name].__init__, arguments)
    except ValueError as error:
        raise ValueError(f"method_args of {name}: {error}") from None


def check_networks(name: str, arguments: dict) -> None:
    """Raises ValueError for a network in a method's arguments that does not exist; nothing is loaded."""
    for argument in METHODS[name].network_args:
        try:
            check_backbone(arguments[argument], arguments.get(f"{argument}_pretrained", True))
        except ValueError as error:
            raise ValueError(f"method_args contains {argument}: {arguments[argument]}; {error}") from None


def method_name(model: SSLModel) -> str:
    """The name of a model's method in `METHODS`; the class name if it is not in the table."""
    return next((name for name, known in METHODS.items() if type(model) is known), type(model).__name__.lower())
