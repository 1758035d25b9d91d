"""Learning rate, momentum, resolution, augmentation magnitude and tokens over a run (Sec. 3.1, 3.2)."""

from hf_essl.schedules.callback import SuperProgressiveCallback
from hf_essl.schedules.curriculum import Curriculum, MagnitudeSchedule, ResolutionSchedule, Size, TokenSchedule
from hf_essl.schedules.curves import (
    CURVES,
    F1CLR,
    Constant,
    Cosine,
    CosineWarmup,
    Curve,
    OneCycle,
    check_schedule,
    curve_from_args,
    warmup_fraction,
)
from hf_essl.schedules.scheduler import CurveScheduler, WeightDecay
