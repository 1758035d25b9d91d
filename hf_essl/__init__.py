"""hf_essl: pretrain vision backbones without labels at a fraction of the usual compute."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "SSLTrainer": "hf_essl.trainer",
    "SSLTrainingArguments": "hf_essl.config",
    "ModelArguments": "hf_essl.config",
    "DataArguments": "hf_essl.config",
    "ViewArguments": "hf_essl.config",
    "SSLModel": "hf_essl.methods",
    "Views": "hf_essl.views",
    "SuperProgressiveCallback": "hf_essl.schedules",
    "Curriculum": "hf_essl.schedules",
    "CurveScheduler": "hf_essl.schedules",
    "F1CLR": "hf_essl.schedules",
    "HardAugment": "hf_essl.selection",
    "knn_accuracy": "hf_essl.evaluation.knn",
    "linear_probe": "hf_essl.evaluation.linear_probe",
    "lr_range_test": "hf_essl.lr_finder",
    "estimate_cost": "hf_essl.cost",
    "export_backbone": "hf_essl.hub",
    "push_backbone": "hf_essl.hub",
    "load_backbone": "hf_essl.evaluation.backbone",
    "draw_neighbors": "hf_essl.reporting.neighbors",
    "write_card": "hf_essl.hub.card",
    "CardCallback": "hf_essl.hub.trainer",
    "load_recipe": "hf_essl.recipe",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:
    from hf_essl.config import DataArguments, ModelArguments, SSLTrainingArguments, ViewArguments
    from hf_essl.cost import estimate_cost
    from hf_essl.evaluation.backbone import load_backbone
    from hf_essl.evaluation.knn import knn_accuracy
    from hf_essl.evaluation.linear_probe import linear_probe
    from hf_essl.hub import export_backbone, push_backbone
    from hf_essl.hub.card import write_card
    from hf_essl.hub.trainer import CardCallback
    from hf_essl.lr_finder import lr_range_test
    from hf_essl.methods import SSLModel
    from hf_essl.recipe import load_recipe
    from hf_essl.reporting.neighbors import draw_neighbors
    from hf_essl.schedules import F1CLR, Curriculum, CurveScheduler, SuperProgressiveCallback
    from hf_essl.selection import HardAugment
    from hf_essl.trainer import SSLTrainer
    from hf_essl.views import Views


def __getattr__(name: str):
    """Imports a public name when it is first asked for, so that `hf-essl --help` loads nothing heavy."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
