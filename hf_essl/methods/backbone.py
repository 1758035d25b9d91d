"""Backbones: built for the resolutions of a run, and refused in one line if they cannot work.

Many transformers accept only the image size that they were built for. `build_backbone` passes the arguments that let
them accept other sizes, as far as they have such arguments. All checks run on the meta device, in about a second.
"""

import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from hf_essl.common import one_line
from hf_essl.compat import image_size_at_build
from hf_essl.methods.meta import BATCH, isolated, meta_copy, meta_views
from hf_essl.methods.sources import SOURCES, find_source

REFUSED = {  # arguments of timm.create_model that pretraining sets itself, and what to do instead
    "num_classes": "pretraining has no classifier; `hf-essl evaluate --protocol linear` trains one",
    "features_only": "pretraining needs one vector per image",
    "pretrained": "set the field pretrained instead",
}
_accepted: dict[tuple[str, str, tuple[int, ...]], dict[str, Any]] = {}  # results of `accepted_arguments`
LOADING = ("checkpoint_path", "cache_dir")  # arguments that load weights, which the meta device does without


def build_backbone(
    name: str, pretrained: bool = False, backbone_args: dict | None = None, resolutions: Iterable[int] = ()
) -> nn.Module:
    """A network without its classifier, B x 3 x r x r to B x D, for each r in `resolutions`; see `find_source`.

    Without resolutions it accepts its own size, and as many others as the architecture can.

    Raises ValueError for arguments and resolutions that it does not accept; weights raise what timm raises.
    """
    arguments = accepted_arguments(name, backbone_args or {}, resolutions)
    source, own_name = find_source(name)
    return source.create(own_name, pretrained, arguments)


def load_network(
    name: str, pretrained: bool = False, backbone_args: dict | None = None, resolutions: Iterable[int] = ()
) -> nn.Module:
    """`build_backbone`; weights that cannot be loaded raise ValueError too."""
    try:
        return build_backbone(name, pretrained, backbone_args, resolutions)
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        raise ValueError(f"the weights of {name} cannot be loaded: {one_line(error)}") from error


def accepted_arguments(name: str, backbone_args: dict, resolutions: Iterable[int] = ()) -> dict[str, Any]:
    """The arguments of its library with which a model accepts all `resolutions`; those given win.

    Raises ValueError as `build_backbone` does.
    """
    sizes = tuple(sorted(set(resolutions)))
    if ":" in name or "/" in name:  # a folder or a Hub id, whose content may change
        return _arguments(name, backbone_args, sizes)
    key = name, repr(backbone_args), sizes
    if key not in _accepted:
        _accepted[key] = _arguments(name, backbone_args, sizes)
    return _accepted[key]


def _arguments(name: str, backbone_args: dict, sizes: tuple[int, ...]) -> dict[str, Any]:
    plain = _plain_network(name, backbone_args)
    built_for = [{"img_size": size} for size in sizes[-1:] if is_timm(name)]
    for sizing in (*_sizing(name), *built_for):
        arguments = {**sizing, **backbone_args}
        network = _built(name, arguments)
        if network is not None and all(_accepts(network, size) for size in sizes or (own_size(network),)):
            return arguments
    raise ValueError(_refusal(name, backbone_args, sizes, plain))


def _plain_network(name: str, backbone_args: dict) -> nn.Module:
    """The network with the given arguments only, on the meta device. Raises ValueError if one cannot work."""
    _check_arguments(name, backbone_args)
    try:
        network = meta_backbone(name, backbone_args)
    except Exception as error:
        raise ValueError(_wrong_argument(name, backbone_args, error)) from error
    try:
        feature_size(network)
    except ValueError as error:
        raise ValueError(f"backbone is {name!r} with backbone_args {backbone_args}, but {error}") from error
    return network


def check_backbone(name: str, pretrained: bool = False) -> None:
    """Raises ValueError if there is no such model, no such weights of it, or for `pretrained` none at all."""
    source, own_name = find_source(name)
    source.check(own_name, pretrained)


def is_timm(name: str) -> bool:
    """Whether timm builds a backbone."""
    return find_source(name)[0] is SOURCES["timm"]


def _sizing(name: str) -> tuple[dict[str, Any], ...]:
    return find_source(name)[0].sizing


def check_resolutions(backbone: nn.Module, resolutions: Iterable[int]) -> None:
    """Raises ValueError unless a network that is already built accepts each resolution."""
    network = meta_copy(backbone)
    sizes = sorted(set(resolutions))
    refused = [size for size in sizes if not _accepts(network, size)]
    if refused:
        raise ValueError(
            f"the backbone, {type(backbone).__name__}, does not accept {_listed(refused)} px; build it with "
            f"SSLModel.from_timm(…, resolutions={sizes}), or choose other resolutions"
        )


def storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as safetensors requires it: contiguous tensors without shared memory, which CoaT has."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        value = value.contiguous()
        stored[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return stored


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of a state dict; the order and the device do not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)  # bfloat16 too
    return digest.hexdigest()


def feature_size(backbone: nn.Module) -> int:
    """D of a backbone, B x 3 x r x r to B x D, measured by a pass on the meta device; the backbone does not change.

    `num_features` of timm is another number for networks with a convolution after the pooling, such as MobileNetV3.

    Raises ValueError if it returns anything but one vector per image.
    """
    network, size = meta_copy(backbone), own_size(backbone)
    try:
        features = _features(network, size)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{type(backbone).__name__} does not accept 3 x {size} x {size} images: {reason}") from error
    if not _is_one_vector_per_image(features):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"{type(backbone).__name__} returns {shape} for {BATCH} images instead of one vector per image; build it "
            f"with a global pooling and without a classifier"
        )
    return features.shape[1]


def freeze_unused(backbone: nn.Module) -> None:
    """Takes the parameters out of training that the features do not depend on, such as ConViT's class token.

    They would never get a gradient, for which DDP with `ddp_find_unused_parameters: false` stops.
    """
    network = meta_copy(backbone).train()
    with isolated(), torch.enable_grad():
        network(meta_views(own_size(backbone))).sum().backward()
    for parameter, twin in zip(backbone.parameters(), network.parameters(), strict=True):
        if twin.grad is None:
            parameter.requires_grad_(False)


def _features(network: nn.Module, size: int) -> Any:
    """The output of a network on the meta device in train mode, where BatchNorm is strictest."""
    with isolated(), torch.no_grad():
        return network.train()(meta_views(size))


def _is_one_vector_per_image(features: Any) -> bool:
    return isinstance(features, Tensor) and features.ndim == 2 and len(features) == BATCH


def _accepts(network: nn.Module, size: int) -> bool:
    try:
        return _is_one_vector_per_image(_features(network, size))
    except Exception:  # architectures refuse a size by any error: of an assertion, a reshape, a broadcast
        return False


def own_size(backbone: nn.Module) -> int:
    """The side in pixels that a network was built for, or that timm recommends for it."""
    return image_size_at_build(backbone) or resolve_model_data_config(backbone)["input_size"][-1]


def meta_backbone(name: str, arguments: dict) -> nn.Module:
    """The network on the meta device, without its weights; `arguments` are those of its library."""
    kept = {key: value for key, value in arguments.items() if key not in LOADING}
    source, own_name = find_source(name)
    with isolated(), torch.device("meta"):
        return source.create(own_name, False, kept)


def _built(name: str, arguments: dict) -> nn.Module | None:
    """The network on the meta device; None if its constructor does not accept the arguments."""
    try:
        return meta_backbone(name, arguments)
    except Exception:  # most raise TypeError; some assert that an image size fits their windows
        return None


# ---- messages ----


def _check_arguments(name: str, backbone_args: dict) -> None:
    for key, value in backbone_args.items():
        if key in REFUSED:
            raise ValueError(f"backbone_args contains {key}, which is not accepted: {REFUSED[key]}")
        if key == "checkpoint_path" and not Path(value).is_file():
            raise ValueError(f"backbone_args contains checkpoint_path: {value}, which is not a file")
        if "drop" in str(key) and isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ValueError(f"backbone_args contains {key}: {value!r}; a drop rate is a number in [0, 1)")


def _wrong_argument(name: str, backbone_args: dict, error: Exception) -> str:
    """Which argument of timm.create_model is wrong, and which ones the model accepts."""
    found = re.search(r"unexpected keyword argument(?:\(s\): \[)? ?'(\w+)'", str(error))
    if found:
        known = [key for key in _parameters(name) if key not in REFUSED]
        return f"backbone_args contains {found[1]!r}, which {name} does not accept; choose from {', '.join(known)}"
    if not backbone_args:
        return f"backbone is {name!r}, which cannot be built: {one_line(error)}"
    alone = [key for key, value in backbone_args.items() if _built(name, {key: value}) is None]
    shown = ", ".join(f"{key}: {backbone_args[key]!r}" for key in alone[:1] or backbone_args)
    return f"backbone_args contains {shown}, which {name} does not accept: {one_line(error)}"


def _parameters(name: str) -> Iterator[str]:
    """The names of a model's arguments, as far as its class declares them."""
    declared = inspect.signature(type(meta_backbone(name, {})).__init__).parameters.values()
    return (
        p.name for p in declared if p.name not in ("self", "cfg", "device", "dtype") and p.kind is not p.VAR_KEYWORD
    )


def _refusal(name: str, backbone_args: dict, sizes: Sequence[int], plain: nn.Module) -> str:
    """Which sizes a network does not accept, which it accepts, and what to set."""
    own = own_size(plain)
    networks = [net for sizing in _sizing(name) if (net := _built(name, {**sizing, **backbone_args})) is not None]
    tried = sorted({*sizes, own, *range(32, 257, 32)})
    flexible = max(([size for size in tried if _accepts(net, size)] for net in networks), key=len)
    start = f"backbone is {name!r}, which does not accept the resolutions {_listed(sizes)}; "
    if len(flexible) > 1:
        return (
            f"{start}of those up to {tried[-1]} it accepts {_listed(flexible)}: choose resolution, min_resolution, "
            f"resolution_step and selection_resolution accordingly"
        )
    built_for = (_built(name, {"img_size": size, **backbone_args}) for size in sizes)
    several = [size for size, net in zip(sizes, built_for, strict=True) if net is not None and _accepts(net, size)]
    only = several[-1] if several else own
    step = "" if only % 32 == 0 else f", resolution_step: {only}"
    accepts = f"one size per run, such as {_listed(several)}" if set(several) - {own} else f"{own} only"
    return (
        f"{start}it accepts {accepts}; set resolution_schedule: constant, resolution: {only}{step}, "
        f"selection_resolution: {only}"
    )


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
