"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021)."""

import itertools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.config.fields import Count, NonNegative, NonNegativeInt, Positive, Probability, checked
from hf_essl.methods.base import Pair, SSLModel
from hf_essl.methods.distributed import mean_over_processes
from hf_essl.methods.teacher import MomentumTeacher, cosine_momentum


class DINO(SSLModel):
    """Cross-entropy from the teacher's centered and sharpened softmax to the student's over K outputs (Eq. 3, Alg. 1).

    With local views, the cross-entropy is the mean over all pairs of one of the teacher's two views and another view
    of the student.

    Args:
        hidden: hidden size of the head.
        bottleneck: size before the last layer.
        output_dim: K; 65,536 on ImageNet, 1,024 to 2,048 on data sets of up to 20,000 images.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's softmax, after its warm-up.
        warmup_teacher_temperature: the same in the first epoch; it rises linearly, once per epoch.
        warmup_teacher_epochs: epochs of this warm-up.
        momentum: tau of the teacher at the start of the run; it rises to 1 along a cosine.
        center_momentum: of the center's moving average.
        freeze_last_layer_epochs: epochs in which the student's last layer is not trained.
        norm_last_layer: fix the norm of the last layer's vectors at 1, as published for ResNet-50 and ViT-B; false
            trains them, as published for ViT-S.
        head_std: standard deviation of the head's initial weights; by default 0.02, as published, at a width of 2,048,
            and the same gain at other widths. A narrow head with 0.02 has a small output; normalization divides the
            gradient by it, and the head collapses.
    """

    title = "DINO"
    description = "cross-entropy to the centered softmax of a momentum teacher (Caron et al. 2021)"
    citation = r"""@inproceedings{caron2021emerging,
  title     = {Emerging Properties in Self-Supervised Vision Transformers},
  author    = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J{\'e}gou, Herv{\'e} and others},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2021}
}"""
    small_args: ClassVar[dict[str, Any]] = dict(hidden=24, bottleneck=16, output_dim=32, teacher_temperature=0.04)
    has_teacher = True
    clears_gradients = True
    collapse_hint = "lower learning_rate or teacher_temperature (in method_args), or freeze the last layer for longer"
    projector: nn.Sequential
    center: Tensor

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        hidden: Count = 2048,
        bottleneck: Count = 256,
        output_dim: Count = 65536,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.07,
        warmup_teacher_temperature: Positive = 0.04,
        warmup_teacher_epochs: NonNegativeInt = 30,
        momentum: Probability = 0.996,
        center_momentum: Probability = 0.9,
        freeze_last_layer_epochs: NonNegative = 1,
        norm_last_layer: bool = True,
        head_std: Positive | None = None,
    ):
        super().__init__(backbone)
        self.student_temperature, self.center_momentum = student_temperature, center_momentum
        self.temperature, self.final_temperature = warmup_teacher_temperature, teacher_temperature
        self.warmup_temperature, self.warmup_epochs = warmup_teacher_temperature, warmup_teacher_epochs
        self.base_momentum = self.momentum = momentum
        self.frozen_epochs, self.frozen = freeze_last_layer_epochs, freeze_last_layer_epochs > 0
        sizes = (self.num_features, hidden, hidden, bottleneck)
        first, second, third = (_linear(*pair, head_std) for pair in itertools.pairwise(sizes))
        last = Prototypes(bottleneck, output_dim, norm_last_layer)
        self.projector = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third, last)
        self.teacher = MomentumTeacher(self.backbone, self.projector)
        self.register_buffer("center", torch.zeros(1, output_dim))
        self._pending_means: list[Tensor] = []  # mean teacher outputs of this step, 1 x K each

    def embed(self, view: Tensor) -> Pair:
        logits = self.projector(self.backbone(view))  # B x K
        return logits, logits

    def targets(self, views: Pair, keys: Pair) -> Pair:
        first, second = self.teacher(views[0]).float(), self.teacher(views[1]).float()  # B x K
        self._pending_means.append(torch.cat([first, second]).mean(dim=0, keepdim=True))
        return first, second

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        return (self._cross_entropy(queries[0], keys[1]) + self._cross_entropy(queries[1], keys[0])) / 2  # B

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        targets = torch.stack([self._sharpened(key) for key in keys])  # 2 x B x K
        entropy = torch.special.entr(targets).sum(dim=-1).mean()
        return {"teacher_entropy": entropy, "kl": losses.mean() - entropy}

    def _sharpened(self, teacher: Tensor) -> Tensor:
        return ((teacher.detach().float() - self.center) / self.temperature).softmax(dim=-1)  # B x K

    def _cross_entropy(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_student = (student.float() / self.student_temperature).log_softmax(dim=-1)  # B x K
        return -(self._sharpened(teacher) * log_student).sum(dim=-1)  # B

    def loss_at_collapse(self, images: int) -> float:
        return math.log(self.center.shape[1])

    def settling_steps(self, batch: int) -> int:
        """Until the share of the initial center, 0, is below a hundredth."""
        momentum = self.center_momentum
        return math.ceil(math.log(0.01) / math.log(momentum)) if 0 < momentum < 1 else 1

    def before_step(self, progress: float, epoch: float) -> None:
        self.momentum = cosine_momentum(self.base_momentum, progress)
        warm = min(int(epoch) / max(self.warmup_epochs - 1, 1), 1.0) if self.warmup_epochs else 1.0
        self.temperature = self.warmup_temperature + (self.final_temperature - self.warmup_temperature) * warm
        self.frozen = epoch < self.frozen_epochs
        self._pending_means.clear()  # left over if fp16 skipped the last step

    def after_backward(self) -> None:
        if self.frozen:
            self.projector[-1].zero_grad(set_to_none=True)  # without a gradient, SGD applies no weight decay either

    @torch.no_grad()
    def after_step(self) -> None:
        self.teacher.ema_update(self.backbone, self.projector, self.momentum)
        center = mean_over_processes(torch.stack(self._pending_means).mean(dim=0))
        self.center.lerp_(center, 1 - self.center_momentum)
        self._pending_means.clear()


class Prototypes(nn.Module):
    """The last layer, N x features to N x K: cosines with K vectors (a weight-normalized Linear).

    Without `norm`, the cosines have trained gains, which start at 1.
    """

    def __init__(self, features: int, prototypes: int, norm: bool = True):
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(features, prototypes, bias=False).weight.detach())
        self.gain = None if norm else nn.Parameter(torch.ones(prototypes, 1))  # this shape decays, as published

    def forward(self, x: Tensor) -> Tensor:
        vectors = F.normalize(self.weight, dim=-1)
        return F.linear(F.normalize(x.float(), dim=-1), vectors if self.gain is None else self.gain * vectors)


def _linear(fan_in: int, fan_out: int, std: float | None) -> nn.Linear:
    """A Linear whose weights have this std, or by default 0.02 at a width of 2,048 and the same gain at others."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.trunc_normal_(layer.weight, std=std or 0.02 * math.sqrt(2048 / fan_in))
    nn.init.zeros_(layer.bias)
    return layer
