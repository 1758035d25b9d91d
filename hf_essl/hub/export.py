"""Exports the backbone, without its heads, in the format of its library."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
from safetensors.torch import save_file
from torch import nn

from hf_essl.config.fields import Count, Part, checked
from hf_essl.config.training import EVAL_CROP_PCT
from hf_essl.evaluation.pooling import PooledFeatures
from hf_essl.methods.backbone import feature_size, storable
from hf_essl.methods.transformers_backbone import TransformersBackbone
from hf_essl.run_folder import CONFIG, WEIGHTS
from hf_essl.views.crops import INTERPOLATION

TIMM_WEIGHTS = ("origin_url", "paper_ids", "license")  # configuration keys that describe the weights published by timm
TIMM_SIZES = ("test_input_size", "pool_size", "test_pool_size")  # the same for its image sizes

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


@checked
def export_backbone(
    model: nn.Module,
    output_dir: str | Path,
    *,
    input_size: Count,
    crop_pct: Part = EVAL_CROP_PCT,
    interpolation: Interpolation = INTERPOLATION,
    tag: str = "hf_essl",
    pool: str | None = None,
) -> Path:
    """Exports `model.backbone` (or a bare backbone) as `config.json` and `model.safetensors`.

    The configuration contains the preprocessing of the evaluation, which `timm.data.create_transform` and
    transformers' `AutoImageProcessor` both read: resized short side, center crop, normalization.

    Projector, predictor, teacher and queue are not exported. Each file is written beside the folder, then moved there.

    Args:
        model: an `SSLModel`, or a backbone without a classifier, such as timm's with `num_classes=0`.
        input_size: side in pixels of the test images.
        crop_pct: side of their center crop, as a share of the short side.
        interpolation: of the resize, by timm's name.
        tag: name of the pretraining in the configuration.
        pool: with which `load_backbone` reads it again, see there; timm and transformers know only the network's own.

    Returns the folder. `load_backbone` reads it, and so does the library of the network: for timm's
    `timm.create_model("local-dir:FOLDER", pretrained=True)`, for transformers' `AutoModel.from_pretrained(FOLDER)`.
    """
    backbone: Any = getattr(model, "backbone", model)
    (target := Path(output_dir)).parent.mkdir(parents=True, exist_ok=True)
    data = _preprocessing(backbone) | {"crop_pct": crop_pct, "interpolation": interpolation}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        _writer(backbone)(backbone, Path(scratch), data, input_size, tag)
        if pool is not None:
            _record_pool(backbone, pool, Path(scratch) / CONFIG)
        target.mkdir(exist_ok=True)
        for file in Path(scratch).iterdir():
            os.replace(file, target / file.name)
    return target


def _writer(backbone: nn.Module) -> Callable[[Any, Path, dict[str, Any], int, str], None]:
    """How the library of a network writes it."""
    if isinstance(backbone, TransformersBackbone):
        return _write_transformers
    if "architecture" in getattr(backbone, "pretrained_cfg", {}):
        return _write_timm
    return _write_weights


def _write_timm(backbone: Any, folder: Path, data: dict[str, Any], input_size: int, tag: str) -> None:
    named = {"pretrained_cfg": {"tag": tag}}
    hook = backbone.register_state_dict_post_hook(_make_storable)
    try:
        timm.models.save_for_hf(backbone, str(folder), safe_serialization=True, data_config=data, model_config=named)
        _describe_our_weights(folder / CONFIG, feature_size(backbone), input_size)
    finally:
        hook.remove()


def _write_transformers(backbone: Any, folder: Path, data: dict[str, Any], input_size: int, tag: str) -> None:
    backbone.save(folder, data | {"input_size": input_size})


def _write_weights(backbone: Any, folder: Path, data: dict[str, Any], input_size: int, tag: str) -> None:
    """The weights of a network of torchvision, or of one's own class, and what `load_backbone` needs of it."""
    own = {"library": "module", "architecture": f"{type(backbone).__module__}.{type(backbone).__qualname__}"}
    config: dict[str, Any] = getattr(backbone, "torchvision", own)
    preprocessing = data | {"tag": tag, "input_size": [3, input_size, input_size]}
    config = {**config, "num_features": feature_size(backbone), "pretrained_cfg": preprocessing}
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(storable(backbone.state_dict()), folder / WEIGHTS, metadata={"format": "pt"})


def _record_pool(backbone: nn.Module, pool: str, path: Path) -> None:
    facts = {"pool": pool, "num_features": feature_size(PooledFeatures(backbone, pool))}
    path.write_text(json.dumps(json.loads(path.read_text()) | facts, indent=2))


def _preprocessing(backbone: Any) -> dict[str, Any]:
    config = timm.data.resolve_model_data_config(backbone)
    return {"mean": config["mean"], "std": config["std"], "crop_mode": "center"}


def _make_storable(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """For safetensors; the weights may have the channels-last format."""
    state.update(storable(state))


def _describe_our_weights(path: Path, num_features: int, input_size: int) -> None:
    """Drops what describes timm's own weights, and `num_classes`, which transformers would pass a second time.

    `num_features` is that of the exported features; timm writes another number for networks such as MobileNetV3. timm
    also refuses another `input_size` than its own for CrossViT and EfficientViT-MSRA, which accept any.
    """
    config = json.loads(path.read_text()) | {"num_features": num_features}
    config.get("model_args", {}).pop("num_classes", None)
    for key in TIMM_WEIGHTS + TIMM_SIZES:
        config["pretrained_cfg"].pop(key, None)
    built_for = config.get("model_args", {}).get("img_size")
    if built_for and list(built_for) != [input_size, input_size]:
        config["pretrained_cfg"]["fixed_input_size"] = False
    config["pretrained_cfg"]["input_size"] = [3, input_size, input_size]
    path.write_text(json.dumps(config, indent=2))
