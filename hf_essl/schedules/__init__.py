"""Learning rate, momentum, resolution and augmentation magnitude over a run (Sec. 3.1, 3.2)."""

from hf_essl.schedules.callback import SuperProgressiveCallback
from hf_essl.schedules.curves import F1CLR, Constant, Cosine, CosineWarmup, Curve, OneCycle, curve_from_args
from hf_essl.schedules.growth import BatchGrowth
from hf_essl.schedules.resolution import (
    MagnitudeSchedule,
    ResolutionSchedule,
    magnitude_schedule,
    resolution_schedule,
)
from hf_essl.schedules.scheduler import CurveScheduler

__all__ = [
    "F1CLR",
    "BatchGrowth",
    "Constant",
    "Cosine",
    "CosineWarmup",
    "Curve",
    "CurveScheduler",
    "MagnitudeSchedule",
    "OneCycle",
    "ResolutionSchedule",
    "SuperProgressiveCallback",
    "curve_from_args",
    "magnitude_schedule",
    "resolution_schedule",
]
