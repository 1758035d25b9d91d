"""Backbones of torchvision, by their names there, without the last layer of the classifier."""

import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from hf_essl.common import nearest
from hf_essl.run_folder import CONFIG, WEIGHTS

CLASSIFIERS = ("fc", "classifier", "heads", "head")  # attributes, whose last layer is replaced


class TorchvisionSource:
    """torchvision's classification models, by name or in the folder of an exported one."""

    sizing: tuple[dict[str, Any], ...] = ({},)

    def check(self, name: str, pretrained: bool) -> None:
        name = _described(name).get("architecture", name)
        known = torchvision.models.list_models(torchvision.models)
        if name not in known:
            near = nearest(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "torchvision.models.list_models() lists them"
            raise ValueError(f"backbone is torchvision:{name}, which is not a model of torchvision; {hint}")

    def create(self, name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
        config = _described(name)
        architecture = config.get("architecture", name)
        arguments = config.get("arguments", {}) | arguments
        published = "DEFAULT" if pretrained and not config else None
        network = torchvision.models.get_model(architecture, weights=published, **arguments)
        _remove_classifier(network, architecture)
        size = arguments.get("image_size", 224)
        network.pretrained_cfg = {
            "input_size": (3, size, size),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            **_preprocessing(config),
        }
        network.torchvision = {"library": "torchvision", "architecture": architecture, "arguments": arguments}
        if config and pretrained and not torch.empty(0).is_meta:
            network.load_state_dict(load_file(Path(name) / WEIGHTS))
        return network


def _described(name: str) -> dict[str, Any]:
    """The configuration of an exported backbone; empty for a name."""
    path = Path(name) / CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.get("pretrained_cfg", {}).items()
    }


def _remove_classifier(network: nn.Module, name: str) -> None:
    """Replaces the last layer of the classifier by the identity, in place."""
    for attribute in CLASSIFIERS:
        layer: Any = getattr(network, attribute, None)
        if isinstance(layer, nn.Linear):
            setattr(network, attribute, nn.Identity())
            return
        if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.Linear):
            layer[-1] = nn.Identity()
            return
    raise ValueError(f"the classifier of torchvision:{name} does not end with a linear layer, choose another network")
