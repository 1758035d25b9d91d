"""How to train: `transformers.TrainingArguments` with the paper's defaults, its schedules and the evaluation."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import TrainingArguments

from hf_essl.compat import tracker_callbacks, tracker_problem
from hf_essl.config.fields import Count, NonNegative, NonNegativeInt, Positive, Share, check_fields, on_resume, option
from hf_essl.config.inherited import INHERITED_RULES, RANGES, check_engine, check_inherited
from hf_essl.config.optimizers import LARS, SGD, check_optimizer, check_optimizer_package

logger = logging.getLogger(__name__)

KNN_K, KNN_TEMPERATURE = 20, 0.07  # also the defaults of `hf_essl.evaluation` (Wu et al. 2018, Sec. 3.4)
EVAL_CROP_PCT = 0.875  # 224 of 256 pixels, as in SimSiam and DINO; also the default of `hf_essl.evaluation`
BEST_METRIC = "eval_knn_accuracy"  # of `load_best_model_at_end` and `save_strategy: best`
WHOLE_SQUARE = 1.0  # the crop_pct of runs and evaluations from before this setting


@dataclass
class SSLTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the paper's defaults, its learning-rate schedules and the evaluation."""

    resume_rules = INHERITED_RULES | on_resume(
        acts="learning_rate weight_decay weight_decay_end num_train_epochs max_grad_norm clip_each_parameter "
        "lr_schedule warmup_epochs "
        "one_cycle_fraction momentum min_momentum max_momentum sync_batchnorm",
        fixed="decay_norm_and_bias optim fix_predictor_lr dataloader_drop_last eval_crop_pct knn_k knn_temperature "
        "online_probe",
        free="output_dir per_device_train_batch_size total_batch_size per_device_eval_batch_size "  # images_per_step
        "remove_unused_columns logging_nan_inf_filter logging_steps save_total_limit ddp_find_unused_parameters "
        "dataloader_persistent_workers knn_every_epochs on_divergence channels_last overwrite_output_dir "
        "measure_speedup",
    )
    inherited_ranges = RANGES  # without a type: it is no field

    output_dir: str | None = option("Folder of the run: checkpoints, metrics, pictures and the backbone.", "runs/essl")
    per_device_train_batch_size: Count = option("Per-device batch size; with total_batch_size its upper limit.", 128)
    total_batch_size: Count | None = option(
        "Images of an optimizer step over all devices; each device takes its share, in several passes if that is more "
        "than per_device_train_batch_size."
    )
    per_device_eval_batch_size: Count = option("Per-device batch size in evaluation.", 256)
    learning_rate: Positive = option("Peak learning rate; it is not scaled with the batch size.", 0.05)
    weight_decay: NonNegative = option("Weight decay.", 5e-4)
    weight_decay_end: NonNegative | None = option(
        "Weight decay at the end of the run, which it reaches along a cosine: 0.4 from weight_decay: 0.04 in DINO; by "
        "default weight_decay is constant."
    )
    decay_norm_and_bias: bool = option(
        "Apply weight decay to all parameters, as published for SimSiam and MoCo; false excludes norms and biases, as "
        "published for BYOL, SimCLR and DINO, and also position embeddings and class tokens.",
        True,
    )
    num_train_epochs: Positive = option("Passes over the training split.", 200)
    optim: str = option(
        "Optimizer: sgd, lars (BYOL and SimCLR; use it with decay_norm_and_bias: false, so that norms and biases keep "
        "the plain learning rate), or another name from transformers.TrainingArguments, such as adamw_torch.",
        SGD,
    )
    max_grad_norm: NonNegative = option("Gradient clipping by norm; 0 is off, as in the paper.", 0.0)
    clip_each_parameter: bool = option(
        "Clip the gradient of each parameter by its own norm, as published for DINO, instead of all of them together.",
        False,
    )
    remove_unused_columns: bool = option("Always off: the loaders need every column of a batch.", False)
    logging_nan_inf_filter: bool = option("Always off: a filtered loss hides divergence.", False)
    logging_steps: Positive = option(
        "Log every N optimizer steps; more often in a run of fewer than 20 N steps, so that it has 20 entries, or one "
        "for each step.",
        10,
    )
    save_total_limit: Count | None = option("Checkpoints to keep; the oldest is deleted first.", 2)
    ddp_find_unused_parameters: bool | None = option("Leave it off: every parameter takes part in the loss.", False)
    dataloader_persistent_workers: bool = option("Keep the workers of a loader between the epochs.", True)
    dataloader_drop_last: bool = option("Drop the last, incomplete batch of an epoch.", True)

    lr_schedule: str = option("Learning-rate (and momentum) schedule.", "cosine")
    warmup_epochs: NonNegative = option("Warm-up t_w in epochs, for schedules that have one.", 0.0)
    one_cycle_fraction: Annotated[float, Field(gt=0, lt=1)] = option(
        "Share of the run in the first phase of one_cycle, rho of Eq. 7.", 0.3
    )
    momentum: Share = option("Momentum of SGD and LARS if the schedule does not cycle it.", 0.9)
    min_momentum: Share = option("Lowest momentum of the cycle, reached at the peak learning rate.", 0.85)
    max_momentum: Share = option("Highest momentum of the cycle, at its start and end.", 0.95)
    fix_predictor_lr: bool = option("Keep the predictor's learning rate at its peak, as published for SimSiam.", True)

    eval_crop_pct: Annotated[float, Field(gt=0, le=1)] = option(
        "Center crop of every evaluation, as a share of the image's short side; 1: the whole center square.",
        EVAL_CROP_PCT,
    )
    knn_every_epochs: NonNegativeInt = option("Evaluate by kNN every N epochs; 0: only at the start and end.", 0)
    knn_k: Count = option("Neighbors of the kNN evaluation.", KNN_K)
    knn_temperature: Positive = option("Temperature of the kNN votes, exp(cosine / T).", KNN_TEMPERATURE)
    online_probe: bool = option("Train a linear classifier alongside the backbone, on detached features.", False)
    on_divergence: Literal["stop", "warn"] = option(
        "If the loss is not finite or the embedding has collapsed: stop with a checkpoint, or warn and continue.",
        "stop",
    )
    sync_batchnorm: bool = option(
        "BatchNorm statistics over all GPUs; never for MoCo, which must not see its keys' statistics.", True
    )
    channels_last: bool = option(
        "Use the channels-last memory format: faster on a GPU, and on a CPU from about 48 px.", True
    )
    overwrite_output_dir: bool = option("Start over in an output folder that already holds a run.", False)
    measure_speedup: bool = option("Time steps of the plain recipe at the end, to measure the speed-up.", True)

    def __post_init__(self):
        check_engine(self)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # without it, transformers runs each process alone, on all of the images
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers requires it for bf16 on a CPU
        if self.bf16 and self.use_cpu and not cpu_has_bf16():
            logger.warning("bf16 is off: this CPU would emulate bfloat16, about ten times slower than float32")
            self.bf16 = False
        if self._needs_best_metric and self.metric_for_best_model is None:
            self.metric_for_best_model = BEST_METRIC
        check_optimizer(self.optim, self.optim_args)
        is_lars = self.optim == LARS
        if is_lars:
            self.optim = SGD  # transformers accepts its own names only
        super().__post_init__()
        self.idle_gpus = max(self.n_gpu - 1, 0)
        self._n_gpu = min(self.n_gpu, 1)  # several would be nn.DataParallel, whose batches and losses are others
        if is_lars:
            self.optim = LARS
        if self.total_batch_size is not None:
            self._share_batch(self.total_batch_size)

    def _share_batch(self, total: int) -> None:
        """Divides the images of a step over the devices and, if they are too many at once, over several passes.

        Raises ValueError if the devices cannot have equal shares, and for accumulation that is set as well.
        """
        share, rest = divmod(total, self.world_size)
        if rest or not share:
            below = max(share, 1) * self.world_size
            raise ValueError(
                f"total_batch_size is {total}, which {self.world_size} processes cannot share equally; choose {below} "
                f"or {below + self.world_size}"
            )
        if self.gradient_accumulation_steps > 1 and self.gradient_accumulation_steps * self._largest(share) != share:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps} with total_batch_size: {total}, "
                f"which sets it; remove one of them"
            )
        self.per_device_train_batch_size = self._largest(share)
        self.gradient_accumulation_steps = share // self.per_device_train_batch_size

    def _largest(self, share: int) -> int:
        """The largest part of a share that a device takes at once, so that all passes are equal."""
        return next(size for size in range(min(self.per_device_train_batch_size, share), 0, -1) if share % size == 0)

    def check(self) -> None:
        """Raises ValueError for values that cannot work; `CURVES` checks what a learning-rate schedule needs."""
        check_fields(self, SSLTrainingArguments)
        check_inherited(self)
        check_optimizer(self.optim, self.optim_args)
        check_optimizer_package(self)
        if self.min_momentum > self.max_momentum:
            raise ValueError(
                f"min_momentum and max_momentum are {self.min_momentum} and {self.max_momentum}; swap them"
            )
        if self.clip_each_parameter and not self.max_grad_norm:
            raise ValueError("clip_each_parameter is true without max_grad_norm; set it, such as to 3")
        self._check_trackers()
        self._check_hub()

    def _check_trackers(self) -> None:
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in names:
            if name in ("all", "none"):
                continue
            if name not in tracker_callbacks():
                raise ValueError(f"report_to is {name}; choose all, none, or some of {', '.join(tracker_callbacks())}")
            if problem := tracker_problem(name):
                raise ValueError(f"report_to is {name}, but {problem}")

    def _check_hub(self) -> None:
        if self.hub_strategy == "all_checkpoints":
            raise ValueError(
                "hub_strategy is all_checkpoints, which would push pickles; choose end, every_save, or checkpoint "
                "(which also pushes the weights of heads, teacher and queue)"
            )

    @property
    def _needs_best_metric(self) -> bool:
        return self.load_best_model_at_end or str(getattr(self.save_strategy, "value", self.save_strategy)) == "best"

    @property
    def constant_momentum(self) -> float:
        """Momentum if the schedule does not cycle it: that of SGD and LARS, or the first beta of the Adam family."""
        return self.momentum if self.optim in (SGD, LARS) else self.adam_beta1

    @property
    def checkpoints_activations(self) -> bool:
        """Whether the backward pass recomputes activations; transformers has two names for the field."""
        return bool(getattr(self, "activation_checkpointing", None) or self.gradient_checkpointing)

    @property
    def checkpointing_options(self) -> dict[str, Any]:
        """The options of `checkpoints_activations`."""
        options: Any = getattr(self, "activation_checkpointing_kwargs", None) or self.gradient_checkpointing_kwargs
        return options or {}

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or ".")


def cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 instructions (AVX512-BF16, AMX or ARMv8.6)."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
