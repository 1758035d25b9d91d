"""A trained backbone, from a run, a checkpoint, an exported folder or the Hub. Weights are safetensors alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from hf_essl.data.decode import UnreadableImage, decode, image_path
from hf_essl.methods.base import build_backbone, check_backbone
from hf_essl.run_folder import CONFIG, RECIPE, WEIGHTS, last_complete_checkpoint

PREFIXES = {"student": "backbone.", "teacher": "teacher.backbone."}
HUB_ID = re.compile(r"(?:hf[-_]hub:)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


class LoadedBackbone(NamedTuple):
    """What `load_backbone` gives.

    backbone: B x 3 x r x r to B x D, on the CPU, in evaluation mode.
    resolution: r to test it at, in pixels.
    mean, std: of the normalisation, for each channel, of pixels in [0, 1].

        loaded = load_backbone("user/name")
        features = loaded.backbone(loaded.preprocess(["cat.jpg", "dog.jpg"]))  # 2 x D
    """

    backbone: nn.Module
    resolution: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def preprocess(self, images: Iterable[Any]) -> Tensor:
        """What `backbone` takes, N x 3 x r x r: the centre square at r pixels, normalised, as in the evaluation.

        Args:
            images: N paths, PIL images or encoded bytes.

        Raises:
            ValueError: for an image that cannot be read.
        """
        pixels = torch.stack([_decoded(image, self.resolution) for image in images])  # uint8
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels / 255 - mean) / std


def load_backbone(source: str | Path, *, which: str = "student", backbone: str | None = None) -> LoadedBackbone:
    """Loads a backbone with its test resolution and normalisation; nothing is ever unpickled.

    Args:
        source: the folder of a run (its last checkpoint, or without one its `backbone/`), of a checkpoint, or of an
            exported backbone; or the Hub id of one in timm's form, user/name or hf-hub:user/name@revision.
        which: student, or teacher, the momentum teacher of BYOL, MoCo v2+ and DINO, which checkpoints alone hold.
        backbone: timm's name of the architecture, for a checkpoint without the `recipe.yaml` of its run.

    Raises:
        ValueError: for a source that does not exist, cannot be had or holds no backbone, weights that do not fit or
            are no safetensors, and a teacher where there is none.
    """
    if which not in PREFIXES:
        raise ValueError(f"which is {which!r}; it is one of {', '.join(PREFIXES)}")
    folder = find_backbone(source)
    if (folder / CONFIG).is_file():
        return _exported(folder, which)
    return _from_checkpoint(folder, which, backbone)


def find_backbone(source: str | Path) -> Path:
    """The folder that holds the weights: of a checkpoint, of an exported backbone, or of the Hub's cache.

    Raises ValueError as `load_backbone` does.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return _download(str(source))
    if (folder / WEIGHTS).is_file():
        return folder
    try:
        return Path(last_complete_checkpoint(folder))
    except ValueError:
        if (folder / "backbone" / WEIGHTS).is_file():
            return folder / "backbone"
    raise ValueError(
        f"{folder} holds no {WEIGHTS}, no whole checkpoint and no backbone; give the folder of a run, a checkpoint or "
        f"an exported backbone (weights in another format are not read)"
    )


def check_resolution(loaded: LoadedBackbone) -> None:
    """Raises ValueError where the backbone takes no image of its resolution, such as one that no patch divides."""
    if loaded.resolution < 1:
        raise ValueError(f"resolution is {loaded.resolution}; it is a side in pixels, such as 224")
    try:
        with torch.inference_mode():
            loaded.backbone(torch.zeros(1, 3, loaded.resolution, loaded.resolution))
    except (AssertionError, RuntimeError) as error:
        name = type(loaded.backbone).__name__
        raise ValueError(f"resolution is {loaded.resolution}, which this {name} does not take: {error}") from error


def run_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a checkpoint or an exported backbone, in it or in its run; empty where there is none."""
    path = folder / RECIPE if (folder / RECIPE).is_file() else folder.parent / RECIPE
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} cannot be read: {error}") from error
    return recipe if isinstance(recipe, dict) else {}


def _decoded(image: Any, size: int) -> Tensor:
    try:
        return decode(image, size)
    except UnreadableImage as error:
        raise ValueError(f"image {image_path(image) or ''} cannot be read: {error}") from error


def _exported(folder: Path, which: str) -> LoadedBackbone:
    if which == "teacher":
        raise ValueError(f"which is teacher, but {folder} is an exported backbone, the student; give a checkpoint")
    try:
        architecture = json.loads((folder / CONFIG).read_text()).get("architecture")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} cannot be read: {error}") from error
    if architecture is None:
        raise ValueError(f"{folder / CONFIG} names no architecture; give a backbone in timm's form")
    check_backbone(architecture)
    try:
        model = build_backbone(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} do not fit {architecture}: {error}") from error
    config = resolve_model_data_config(model, use_test_size=True)
    return LoadedBackbone(model.eval(), config["input_size"][-1], config["mean"], config["std"])


def _from_checkpoint(folder: Path, which: str, name: str | None) -> LoadedBackbone:
    recipe = run_recipe(folder)
    arguments = {} if name else recipe.get("backbone_args") or {}
    name = name or recipe.get("backbone")
    if name is None:
        raise ValueError(f"{folder.parent} holds no {RECIPE} that names the backbone; pass backbone, such as resnet50")
    check_backbone(name)
    model = build_backbone(name, backbone_args=arguments)
    try:
        model.load_state_dict(_weights(folder / WEIGHTS, which))
    except RuntimeError as error:
        raise ValueError(f"the {which}'s weights in {folder} do not fit {name}: {error}") from error
    config = resolve_model_data_config(model)
    resolution = recipe.get("resolution") or config["input_size"][-1]
    return LoadedBackbone(model.eval(), resolution, config["mean"], config["std"])


def _weights(path: Path, which: str) -> dict[str, Tensor]:
    """The weights of one backbone out of a checkpoint, under the backbone's own names."""
    prefix = PREFIXES[which]
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in list(file.keys()) if name.startswith(prefix)]
            weights = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not weights and which == "teacher":
        raise ValueError(f"which is teacher, but {path} holds none; byol, mocov2 and dino keep one, else take student")
    if not weights:
        raise ValueError(f"{path} holds no {prefix}* weights; give a checkpoint of `hf-essl pretrain`")
    return weights


def _download(source: str) -> Path:
    """The Hub's files of an id, config and safetensors alone, from its cache where they are there."""
    found = HUB_ID.fullmatch(source)
    if not found:
        raise ValueError(
            f"source is {source}, which does not exist; give the folder of a run, a checkpoint or an exported "
            f"backbone, or a Hub id such as timm/resnet50.a1_in1k"
        )
    name, revision = found.groups()
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (
        HfHubHTTPError,
        OSError,
        ValueError,
    ) as error:  # offline, unknown, private; a ConnectionError is an OSError
        reason = " ".join(str(error).split())
        raise ValueError(f"source is {source}, no folder here, and the Hub does not give it: {reason}") from error
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(f"{source} on the Hub holds no {file}; give a backbone in timm's form, in safetensors")
    return folder
