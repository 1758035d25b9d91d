"""Writes the backbone alone, in the form that timm, and transformers through it, load."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
from torch import nn

CONFIG_OF_TIMM_WEIGHTS = ("origin_url", "paper_ids", "license")  # they describe the weights that timm published

AS_EVALUATED = {"crop_pct": 1.0, "interpolation": "bicubic"}
"""How hf_essl prepares an image to evaluate: the whole short side, bicubic. An architecture's own crop is another."""


def export_backbone(model: nn.Module, output_dir: str | Path, *, input_size: int, tag: str = "hf_essl") -> Path:
    """Exports `model.backbone` (or a bare timm backbone) as `config.json` and `model.safetensors`.

    Projector, predictor, teacher and queue stay out. The folder is written beside its place and moved there whole.

    Args:
        model: an `SSLModel`, or a timm backbone built with `num_classes=0`.
        input_size: side in pixels of the images it was trained on.
        tag: name of the pretraining in the config.

    Returns:
        The folder: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it.
    """
    backbone = getattr(model, "backbone", model)
    config = timm.data.resolve_model_data_config(backbone)
    data = {
        "input_size": (3, input_size, input_size),
        "mean": config["mean"],
        "std": config["std"],
        **AS_EVALUATED,
    }
    target = Path(output_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch_folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-")
    with scratch_folder as scratch, _contiguous_state(backbone):
        timm.models.save_for_hf(
            backbone,
            scratch,
            safe_serialization=True,
            data_config=data,
            model_config={"pretrained_cfg": {"tag": tag}},
        )
        _tell_our_weights(Path(scratch) / "config.json")
        target.mkdir(exist_ok=True)
        for file in Path(scratch).iterdir():
            os.replace(file, target / file.name)
    return target


@contextmanager
def _contiguous_state(module: nn.Module) -> Iterator[None]:
    """Its `state_dict()` is contiguous, as safetensors wants it; weights may be channels last."""

    def pack(module, state, prefix, metadata):
        state.update({name: value.contiguous() for name, value in state.items()})

    hook = module.register_state_dict_post_hook(pack)
    try:
        yield
    finally:
        hook.remove()


def _tell_our_weights(path: Path) -> None:
    """Drops what describes timm's own weights, and `num_classes`, which transformers would pass a second time."""
    config = json.loads(path.read_text())
    config.get("model_args", {}).pop("num_classes", None)
    for key in CONFIG_OF_TIMM_WEIGHTS:
        config.get("pretrained_cfg", {}).pop(key, None)
    path.write_text(json.dumps(config, indent=2))
