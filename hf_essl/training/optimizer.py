"""The optimizer's parameter groups."""

from typing import Any

import torch
from transformers import Trainer

from hf_essl.config import SSLTrainingArguments
from hf_essl.methods import SSLModel


def build_optimizer(model: SSLModel, args: SSLTrainingArguments, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer `args.optim`, with weight decay on every parameter, including biases and norms.

    A method's `fixed_lr_modules` form a group of their own, whose learning rate stays at the peak with
    `fix_predictor_lr`. `fused` uses torch's fused SGD if the method allows it.
    """
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    if optimizer_class is torch.optim.SGD:
        settings.setdefault("momentum", args.momentum)
        settings.setdefault("fused", fused and not model.clears_gradients)
    settings.setdefault("weight_decay", args.weight_decay)
    fixed_names = model.fixed_lr_modules if args.fix_predictor_lr else ()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    fixed = [p for n, p in trained if n.split(".")[0] in fixed_names]
    scheduled = [p for n, p in trained if n.split(".")[0] not in fixed_names]
    groups = [{"params": scheduled}] + ([{"params": fixed, "fixed_lr": True}] if fixed else [])
    return optimizer_class(groups, **settings)


def momentum_of(optimizer: Any) -> float | None:
    """Momentum of the first group: SGD's, or the first beta of the Adam family; None if it has neither."""
    group = optimizer.param_groups[0]
    return group["momentum"] if "momentum" in group else group.get("betas", (None,))[0]
