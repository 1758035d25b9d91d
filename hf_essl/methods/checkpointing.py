"""Activation checkpointing: timm's, without its second update of the running statistics."""

from typing import Any

from torch import Tensor, nn

from hf_essl.common import one_line
from hf_essl.compat import in_backward

DEFAULTS = {"every_n_layers": 1, "offload": False, "use_reentrant": False}  # what timm does; it has no other options
HOOKED, STATISTICS = "_restores_statistics", "_statistics"  # attributes of a backbone, and of its normalizations


def checkpoint_activations(backbone: nn.Module, options: dict[str, Any] | None = None) -> None:
    """Lets a timm model recompute its activations in the backward pass, in place.

    Raises ValueError as `check_checkpointing` does.
    """
    check_checkpointing(backbone, options)
    backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    if not getattr(backbone, HOOKED, False):  # Trainer asks again in each `train`
        setattr(backbone, HOOKED, True)
        for module in filter(has_running_statistics, backbone.modules()):
            module.register_forward_pre_hook(_save)
            module.register_forward_hook(_restore, always_call=True)


def check_checkpointing(backbone: nn.Module, options: dict[str, Any] | None = None, compiled: bool = False) -> None:
    """Raises ValueError for a backbone without activation checkpointing, and for options that timm does not have.

    `compiled` is whether torch.compile will compile it: its recomputation saves the running statistics of a BatchNorm,
    which the second view then changes.
    """
    for name, value in (options or {}).items():
        if name not in DEFAULTS or value != DEFAULTS[name]:
            raise ValueError(
                f"activation_checkpointing_kwargs contains {name}: {value!r}; timm checkpoints every block without "
                f"options, remove it"
            )
    if compiled and any(map(has_running_statistics, backbone.modules())):
        raise ValueError(
            "torch_compile and activation_checkpointing (or gradient_checkpointing) are both true, which torch does "
            "not support for a backbone with BatchNorm; set one of them to false"
        )
    enable = getattr(backbone, "set_grad_checkpointing", None)
    try:
        if enable is None:
            raise AssertionError("it has no set_grad_checkpointing")
        enable(True)
        enable(False)
    except AssertionError as error:
        raise ValueError(
            f"activation_checkpointing (or gradient_checkpointing) is true, but {type(backbone).__name__} cannot "
            f"recompute its activations: {one_line(error)}; set it to false, or choose another backbone"
        ) from error


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, or another normalization that learns statistics from its batches."""
    return getattr(module, "running_var", None) is not None


def _save(module: nn.Module, inputs: Any) -> None:
    """Before a recomputed forward pass: the first one has updated the statistics already."""
    if in_backward():
        module.__dict__[STATISTICS] = [buffer.clone() for buffer in module.buffers(recurse=False)]


def _restore(module: nn.Module, inputs: Any, output: Tensor | None) -> None:
    """After it, even if checkpointing ends it early: `.data` because autograd may have saved the buffers."""
    for buffer, before in zip(module.buffers(recurse=False), module.__dict__.pop(STATISTICS, ()), strict=False):
        buffer.data.copy_(before)
