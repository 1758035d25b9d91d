"""Every private or undocumented name of the libraries that this package uses, in one place.

`tests/test_compat.py` asserts each name, its signature and its meaning, so a new release fails there and not silently.
Names that a class must override stand in that class, in a block marked "overrides of transformers".
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils._triton import has_triton
from torch.utils.data import DataLoader

AVAILABILITY = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}  # other names in transformers' checks
PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}  # other names on the index


def tracker_callbacks() -> dict[str, type]:
    """transformers' callbacks by the names that `report_to` accepts."""
    from transformers.integrations import integration_utils  # prints a line on import with WANDB_MODE=offline

    return dict(sorted(integration_utils.INTEGRATION_TO_CALLBACK.items()))


def tracker_problem(name: str) -> str | None:
    """Why transformers cannot use a tracker, and what to do; None if it can, or has no check for it."""
    from transformers.integrations import integration_utils

    check = getattr(integration_utils, f"is_{AVAILABILITY.get(name, name)}_available", None)
    if check is None or check():
        return None
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed: pip install {PACKAGES.get(name, name)}"
    return f"transformers cannot use the installed {name}: it is too old, or its API key is missing (see the warning)"


def default_progress_bar() -> type:
    """The callback of transformers.Trainer that draws its bar: another one in a notebook."""
    from transformers import trainer

    return trainer.DEFAULT_PROGRESS_CALLBACK


def lerp_(targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """`target.lerp_(source, weight)` for each pair, as one multi-tensor operation."""
    torch._foreach_lerp_(list(targets), list(sources), weight)


def local_tensor(value: Tensor) -> Tensor:
    """This process's shard of a parameter under FSDP, or the tensor itself."""
    return getattr(value, "_local_tensor", value)


def can_compile() -> bool:
    """Whether torch.compile can generate kernels for a GPU here."""
    return has_triton()


def allow_recompiles(count: int) -> None:
    """Lets torch.compile keep at least `count` graphs of one function: one per resolution and kind of pass."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, count)


@contextlib.contextmanager
def without_process_group() -> Iterator[None]:
    """Hides the process group inside: collectives and SyncBatchNorm do not accept meta tensors."""
    original = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = original


def forget_preparation(model: nn.Module) -> None:
    """Clears accelerate's mark on a model that `evaluate` has prepared; DDP would silently be skipped otherwise."""
    model.__dict__.pop("_is_accelerate_prepared", None)


def keep_batches_on_host(loader: DataLoader, seed: int) -> DataLoader:
    """A loader prepared by accelerate that leaves its batches on the host and seeds its workers from `seed`.

    Otherwise it draws from torch's global generator whenever its workers start, and the dropout of a resumed run would
    differ from that of an uninterrupted one.
    """
    loader.device = None  # type: ignore[attr-defined]  # where accelerate would move each batch to
    loader.base_dataloader.generator = torch.Generator().manual_seed(seed)  # type: ignore[attr-defined]
    return loader


def shutdown_workers(loader: DataLoader) -> None:
    """Ends the workers of a loader that is no longer read; accelerate keeps a reference to every loader."""
    getattr(loader, "base_dataloader", loader)._iterator = None


def image_size_at_build(backbone: nn.Module) -> int | None:
    """The side in pixels that a timm model was built for by `img_size`; None if it was not."""
    size = getattr(backbone, "_traits", {}).get("img_size")
    return size[-1] if size else None


def patch_dropout_kind(backbone: nn.Module) -> str | None:
    """How a timm ViT calls its `patch_drop`: "plain" (tokens to tokens) or "rotary" (to tokens and their indices).

    None for other networks, also those whose windows need all tokens, and for one that was built with a drop rate.
    """
    if isinstance(backbone, VisionTransformer) and isinstance(backbone.patch_drop, nn.Identity):
        return "plain"
    return "rotary" if isinstance(backbone, Eva) and backbone.patch_drop is None else None


def in_backward() -> bool:
    """Whether autograd is computing gradients in this thread, so that a forward pass is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def dataset_fingerprint(rows: Any) -> str:
    """A text of `datasets` that changes with the files, their modification times and what was selected."""
    return rows._fingerprint


def measured_energy(tracker: Any) -> tuple[float, float]:
    """kWh and kgCO2e that a running codecarbon tracker has counted so far."""
    tracker.flush()
    data = tracker._prepare_emissions_data()
    return data.energy_consumed, data.emissions
