"""Backbones of transformers: the pooled output of ResNet, ViT, DINOv2, ConvNeXt and others."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from hf_essl.run_folder import CONFIG

CROP_PCT = "crop_pct"  # key in preprocessor_config.json
SIZE = 224  # pixels, for models whose configuration names no size


class TransformersBackbone(nn.Module):
    """A model of transformers as B x 3 x r x r to B x D: its `pooler_output`, or the mean of its last hidden state.

    `pretrained_cfg` holds its preprocessing in timm's form, which `timm.data.resolve_model_data_config` reads.

    Args:
        model: a vision model of transformers.
        preprocessing: `mean`, `std`, `input_size` and `crop_pct`, as far as they are known.
    """

    def __init__(self, model: Any, preprocessing: Mapping[str, Any] | None = None):
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        size = getattr(model.config, "image_size", None) or SIZE
        side = size[-1] if isinstance(size, (list, tuple)) else int(size)
        self.pretrained_cfg = {
            "input_size": (3, side, side),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            **(preprocessing or {}),
        }

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=images, **self.options)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            hidden = output.last_hidden_state  # B x tokens x D, or a map B x D x h x w
            pooled = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return pooled.flatten(1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raises AssertionError, as timm's models do, if the model cannot recompute its activations."""
        assert self.model.supports_gradient_checkpointing, "transformers does not support it for this model"
        if enable:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def save(self, folder: Path, preprocessing: Mapping[str, Any]) -> None:
        """Writes what `AutoModel` and `AutoImageProcessor` read: configuration, safetensors and preprocessing.

        Args:
            preprocessing: `input_size` in pixels, `crop_pct`, `mean` and `std` of the test images.
        """
        from transformers import BitImageProcessor  # resized short side, center crop, normalization

        size, crop_pct = preprocessing["input_size"], preprocessing["crop_pct"]
        self.model.save_pretrained(folder)
        processor = BitImageProcessor(
            size={"shortest_edge": int(size / crop_pct)},
            crop_size={"height": size, "width": size},
            resample=Image.Resampling.BICUBIC,
            image_mean=list(preprocessing["mean"]),
            image_std=list(preprocessing["std"]),
        )
        setattr(processor, CROP_PCT, crop_pct)
        processor.save_pretrained(folder)


class TransformersSource:
    """transformers' vision models, by Hub id or folder; `AutoModel` builds them."""

    sizing: tuple[dict[str, Any], ...] = ({},)

    def check(self, name: str, pretrained: bool) -> None:
        folder = Path(name).expanduser()
        if name.startswith((".", "/", "~")) and not (folder / CONFIG).is_file():
            raise ValueError(f"backbone is transformers:{name}, but {folder} contains no {CONFIG}")
        if pretrained and folder.is_dir() and not any(folder.glob("*.safetensors")):
            raise ValueError(f"pretrained is true, but {folder} contains no safetensors; set pretrained: false")

    def create(self, name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
        from transformers import AutoConfig, AutoModel  # slow to import

        name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
        config = AutoConfig.from_pretrained(name, **arguments)
        if pretrained and not torch.empty(0).is_meta:
            model = _with_weights(name, config)
        else:
            model = AutoModel.from_config(config)
        return TransformersBackbone(model, _preprocessing(name))


def _with_weights(name: str, config: Any) -> Any:
    """The model with its weights; transformers would leave missing ones random, and only a pooler's may be missing."""
    from transformers import AutoModel

    model, facts = AutoModel.from_pretrained(
        name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if missing := [key for key in facts["missing_keys"] if not key.startswith("pooler.")]:
        raise ValueError(f"{name} has no weights of {len(missing)} layers of its configuration, such as {missing[0]}")
    return model


def _preprocessing(name: str) -> dict[str, Any]:
    """What the model's image processor says, in timm's form; empty without one."""
    from transformers import AutoImageProcessor

    try:
        facts = AutoImageProcessor.from_pretrained(name).to_dict()
        found = {"mean": tuple(facts["image_mean"]), "std": tuple(facts["image_std"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    crop = facts.get("crop_size")
    size = {"input_size": (3, crop["height"], crop["width"])} if facts.get("do_center_crop") and crop else {}
    return found | size | ({"crop_pct": facts[CROP_PCT]} if CROP_PCT in facts else {})
