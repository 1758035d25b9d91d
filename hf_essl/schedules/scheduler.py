"""A curve bound to an optimizer: the only writer of learning rate, momentum and a scheduled weight decay."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_essl.schedules.curves import Curve, half_cosine


class WeightDecay(NamedTuple):
    """Weight decay that moves from `start` to `end` along half a cosine over `steps` optimizer steps (DINO)."""

    start: float
    end: float
    steps: float

    def at(self, t: float) -> float:
        """Weight decay of step t, in [0, steps]."""
        return self.end + (self.start - self.end) * half_cosine(t / self.steps)


class CurveScheduler(LRScheduler):
    """Sets the learning rate of every group, its momentum if the curve cycles it, and a scheduled weight decay.

    All are functions of the step.

    A group with `"fixed_lr": True` keeps its initial learning rate (SimSiam's predictor); its momentum moves too.
    A group with `"undecayed": True` keeps its weight decay (norms and biases).
    Momentum is `group["momentum"]` (SGD) or the first of `group["betas"]` (the Adam family).

    Args:
        optimizer: its groups' learning rates are the peaks.
        curve: shares of the peak and of `momentum_range`, by optimizer step.
        momentum_range: lowest and highest momentum, beta_l and beta_h of Eq. 7 and 8.
        weight_decay: None leaves it as it is.

    Raises:
        ValueError: for a range outside of [0, 1), and if the curve cycles momentum and the optimizer has none, and for
            a scheduled weight decay likewise.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        curve: Curve,
        momentum_range: tuple[float, float] = (0.85, 0.95),
        last_epoch: int = -1,
        weight_decay: WeightDecay | None = None,
    ):
        _check_momenta(momentum_range)
        self.curve = curve
        self.momentum_range = momentum_range
        self.weight_decay = weight_decay
        if weight_decay is not None and any("weight_decay" not in group for group in optimizer.param_groups):
            raise ValueError(
                f"weight_decay_end is {weight_decay.end:g} but {type(optimizer).__name__} has no weight decay; use an "
                f"optimizer such as adamw_torch or sgd, or drop weight_decay_end"
            )
        if curve.momentum(0) is not None:
            for group in optimizer.param_groups:
                if "momentum" not in group and "betas" not in group:
                    raise ValueError(
                        f"{type(curve).__name__} cycles momentum but {type(optimizer).__name__} has none; use an "
                        f"optimizer such as sgd or adamw_torch, or lr_schedule cosine_warmup"
                    )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        self._set_momentum()
        self._set_weight_decay()
        share = self.curve.lr(self.last_epoch)
        return [
            base * (1.0 if group.get("fixed_lr") else share)
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def _set_momentum(self) -> None:
        position = self.curve.momentum(self.last_epoch)
        if position is None:
            return
        low, high = self.momentum_range
        momentum = low + (high - low) * position
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def _set_weight_decay(self) -> None:
        if self.weight_decay is None:
            return
        for group in self.optimizer.param_groups:
            if not group.get("undecayed"):
                group["weight_decay"] = self.weight_decay.at(self.last_epoch)

    def set_peaks(self, peaks: list[float | Tensor]) -> None:
        """Other peaks, one per group, from the current step on: those of a resumed run, not of its checkpoint."""
        self.base_lrs = peaks
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """The step and the peaks as plain numbers: checkpoints are loaded with `weights_only=True`.

        The curve and the weight decay are left out; they come from the run's arguments.
        """
        state = super().state_dict()
        from_arguments = ("curve", "momentum_range", "weight_decay")
        return {name: value for name, value in state.items() if name not in from_arguments}


def _check_momenta(momenta: tuple[float, float]) -> None:
    if len(momenta) != 2 or not 0 <= momenta[0] <= momenta[1] < 1:
        raise ValueError(f"momentum_range is {momenta!r}; it is the lowest and the highest momentum, in [0, 1)")
