"""hf_essl: pretrain vision backbones without labels at a fraction of the usual compute."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_NAMES = {
    "hf_essl.config": ("SSLTrainingArguments", "ModelArguments", "DataArguments", "ViewArguments"),
    "hf_essl.cost": ("estimate_cost",),
    "hf_essl.evaluation.backbone": ("load_backbone",),
    "hf_essl.evaluation.knn": ("knn_accuracy",),
    "hf_essl.evaluation.linear_probe": ("linear_probe",),
    "hf_essl.hub": ("export_backbone", "push_backbone"),
    "hf_essl.hub.card": ("write_card",),
    "hf_essl.hub.trainer": ("CardCallback",),
    "hf_essl.lr_finder": ("lr_range_test",),
    "hf_essl.methods": ("SSLModel",),
    "hf_essl.recipe": ("load_recipe",),
    "hf_essl.reporting.neighbors": ("draw_neighbors",),
    "hf_essl.schedules": ("SuperProgressiveCallback", "Curriculum", "CurveScheduler", "F1CLR"),
    "hf_essl.selection": ("HardAugment",),
    "hf_essl.trainer": ("SSLTrainer",),
    "hf_essl.views": ("Views",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
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
