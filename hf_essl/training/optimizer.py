"""The optimizer and its parameter groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import Lars
from torch import nn
from torch.nn.utils import clip_grad_norm_
from transformers import Trainer

from hf_essl.config import SSLTrainingArguments
from hf_essl.config.optimizers import LARS, lars_settings
from hf_essl.methods import SSLModel

FROM_FIELDS = ("initial_lr", "weight_decay", "undecayed", "momentum", "betas", "eps")
"""Settings of a group that fields set; the schedule sets the learning rate."""
TOKENS = (
    "cls_token", "class_token", "dist_token", "mask_token", "reg_token", "register_tokens",
    "pos_embed", "pos_embedding", "position_embeddings", "positional_embedding",
    "position_embedding.weight", "position_embeddings.weight", "probe",
)  # fmt: skip
"""Ends of the names of learned tokens and positions in timm, transformers and torchvision."""


def build_optimizer(model: SSLModel, args: SSLTrainingArguments, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer `args.optim`, with weight decay on every parameter or, by `decay_norm_and_bias`, without some.

    A method's `fixed_lr_modules` form groups of their own, whose learning rate stays at the peak with
    `fix_predictor_lr`. `fused` uses torch's fused SGD if the method allows it. LARS adapts the learning rate of every
    parameter, except of those that `decay_norm_and_bias` excludes (SimCLR, BYOL).
    """
    optimizer_class, settings = _class_and_settings(model, args, fused)
    fixed_modules = model.fixed_lr_modules if args.fix_predictor_lr else ()
    undecayed = set() if args.decay_norm_and_bias else norms_and_biases(model)
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name.split(".")[0] in fixed_modules, name in undecayed)
            members.setdefault(key, []).append(parameter)
    excluded = {"weight_decay": 0.0, "undecayed": True} | ({"always_adapt": False} if optimizer_class is Lars else {})
    groups = [
        {"params": parameters} | ({"fixed_lr": True} if is_fixed else {}) | (excluded if is_excluded else {})
        for (is_fixed, is_excluded), parameters in sorted(members.items(), key=lambda item: item[0])
    ]
    optimizer = optimizer_class(groups, **settings)
    if hasattr(optimizer, "train"):  # schedule-free optimizers take a step in this mode only
        optimizer.train()
    return optimizer


def _class_and_settings(model: SSLModel, args: SSLTrainingArguments, fused: bool) -> tuple[type, dict[str, Any]]:
    """The class of `args.optim`, and the settings that all groups share."""
    if args.optim == LARS:  # always_adapt: otherwise timm's Lars is plain SGD without weight decay
        settings = {"lr": args.learning_rate, "momentum": args.momentum, "weight_decay": args.weight_decay}
        return Lars, settings | {"always_adapt": True} | lars_settings(args.optim_args)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    if optimizer_class is torch.optim.SGD:
        settings.setdefault("momentum", args.momentum)
        settings.setdefault("fused", fused and not model.clears_gradients)
    settings.setdefault("weight_decay", args.weight_decay)
    return optimizer_class, settings


def norms_and_biases(model: SSLModel) -> set[str]:
    """Names of the parameters of at most one dimension, and of the backbone's position embeddings and tokens.

    timm lists these in `no_weight_decay()`, which may contain wildcards; other libraries' have the names in `TOKENS`.
    """
    listed: set[str] = getattr(model.backbone, "no_weight_decay", set)() | {f"*{name}" for name in TOKENS}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or any(fnmatch(name, f"backbone.{pattern}") for pattern in listed)
    }


def clip_gradients(model: nn.Module, args: SSLTrainingArguments) -> None:
    """Scales the gradients down to `max_grad_norm`: of each parameter alone, or of all of them together."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if args.max_grad_norm:
        for together in [[one] for one in parameters] if args.clip_each_parameter else [parameters]:
            clip_grad_norm_(together, args.max_grad_norm)


@contextmanager
def averaged_weights(optimizer: Any) -> Iterator[None]:
    """Inside, a schedule-free optimizer gives the model its averaged weights, which evaluate and are saved."""
    switches = hasattr(optimizer, "eval") and hasattr(optimizer, "train")
    if switches:
        optimizer.eval()
    try:
        yield
    finally:
        if switches:
            optimizer.train()


@contextmanager
def settings_kept(optimizer: Any) -> Iterator[None]:
    """The settings of the groups are those from before the block, which loads a checkpoint; the state is loaded.

    Only settings that a field sets: a schedule-free optimizer keeps counters in its groups.
    """
    kept = [{key: group[key] for key in FROM_FIELDS if key in group} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)


def momentum_of(optimizer: Any) -> float | None:
    """Momentum of the first group: SGD's, or the first beta of the Adam family; None if it has neither."""
    group = optimizer.param_groups[0]
    return group["momentum"] if "momentum" in group else group.get("betas", (None,))[0]
