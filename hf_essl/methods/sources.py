"""Where a backbone comes from: timm, transformers, torchvision, or a folder with an exported one.

A name without a prefix is timm's, or a folder with a `config.json`, whose content says which library reads it; in the
folder of a finished run, that is `backbone/`:

    resnet50   hf-hub:timm/resnet18.a1_in1k   runs/quickstart/backbone   torchvision:resnet18   transformers:ORG/NAME

To add a library, write a class with `check` and `create` and add a line to `SOURCES`.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import timm
from torch import nn

from hf_essl.common import nearest, one_line, unknown
from hf_essl.methods.torchvision_backbone import TorchvisionSource
from hf_essl.methods.transformers_backbone import TransformersSource
from hf_essl.run_folder import CONFIG

TIMM_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
OWN = "module:"  # prefix of the name of a network that was passed as an object


class Source(Protocol):
    """A library of networks."""

    sizing: tuple[dict[str, Any], ...]  # arguments that let a network accept several image sizes, the preferred first

    def check(self, name: str, pretrained: bool) -> None:
        """Raises ValueError if the library has no such network, or no weights of it. Nothing is loaded."""
        ...

    def create(self, name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
        """The network, B x 3 x r x r to B x D. Raises what the library raises."""
        ...


class TimmSource:
    """timm's models, by name, by Hub id or in a folder."""

    sizing: tuple[dict[str, Any], ...] = (
        {"dynamic_img_size": True},
        {"dynamic_img_size": True, "dynamic_img_pad": True},  # for sizes that are not multiples of the patch
        {"dynamic_img_pad": True},
        {"strict_img_size": False},
        {},
    )

    def check(self, name: str, pretrained: bool) -> None:
        if name.startswith("local-dir:"):
            name = _architecture(Path(name.removeprefix("local-dir:")).expanduser())
            pretrained = False  # the folder has its own weights
        elif ":" in name:
            return  # the Hub is asked when the network is built
        architecture, _, tag = name.partition(".")
        if "/" in name:
            raise ValueError(
                f"backbone is {name!r}, where no {CONFIG} is; give the folder of a finished run or of an exported "
                f"backbone, or hf-hub:ORG/NAME"
            )
        if not timm.is_model(architecture):
            near = nearest(name, timm.list_models(), 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
            raise ValueError(f"backbone is {name!r}, which is not a timm model; {hint}")
        weights = timm.list_pretrained(f"{architecture}.*")
        if tag and name not in weights:
            raise ValueError(unknown("backbone", name, [architecture, *weights]))
        if pretrained and not weights:
            raise ValueError(f"pretrained is true, but timm has no weights of {name}; set pretrained: false")

    def create(self, name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)


SOURCES: dict[str, Source] = {
    "timm": TimmSource(),
    "transformers": TransformersSource(),
    "torchvision": TorchvisionSource(),
}


def find_source(backbone: str) -> tuple[Source, str]:
    """The library of a backbone, and the name that it has there.

    Raises ValueError for a folder that holds no backbone, and for the name of a network that was passed as an object.
    """
    if backbone.startswith(OWN):
        raise ValueError(
            f"backbone is {backbone}, a network that was passed as an object; build it and pass it to "
            f"SSLModel.from_module, or load_backbone(…, backbone=network)"
        )
    prefix, colon, name = backbone.partition(":")
    if colon and prefix in SOURCES:
        return SOURCES[prefix], name
    folder = Path(backbone.removeprefix("local-dir:")).expanduser()
    if not (folder / CONFIG).is_file():
        folder = folder / "backbone"  # of a run
    if not (folder / CONFIG).is_file():
        return SOURCES["timm"], backbone
    library = library_of(read_config(folder))
    if library in ("torchvision", "transformers"):
        return SOURCES[library], str(folder)
    return SOURCES["timm"], f"local-dir:{folder}"


def library_of(config: dict[str, Any]) -> str:
    """What reads a folder with this config.json: a key of `SOURCES`, `module` (a class of its author) or hf_essl."""
    named = "transformers" if "model_type" in config and "architecture" not in config else "timm"
    return str(config.get("library", named))


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises ValueError if it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG} cannot be read: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} is not a mapping; give the folder of a backbone")
    return config


def _architecture(folder: Path) -> str:
    """timm's name of a backbone in a folder."""
    name = read_config(folder).get("architecture")
    if not isinstance(name, str):
        raise ValueError(f"{folder / CONFIG} names no architecture; give a backbone in timm's form")
    return name
