"""The four groups of recipe fields, each a dataclass: what to train, on which images, through which views, and how.

Field names are unique over the four groups, so a recipe is one flat mapping and an override needs no prefix.
`check()` of each group refuses what cannot work, in one line that names the value, the choices and the fix.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import TrainingArguments

from hf_essl.energy import check_country

logger = logging.getLogger(__name__)


def _help(text: str, default=None, factory=None):
    metadata = {"help": text}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    """The network and the objective."""

    backbone: str = _help("A timm model name, such as resnet50, convnext_tiny or vit_small_patch16_224.", "resnet50")
    method: str = _help("The self-supervised method; `hf_essl.methods.METHODS` lists them.", "simsiam")
    backbone_args: dict = _help("Further arguments of timm.create_model, such as {drop_path_rate: 0.1}.", factory=dict)
    method_args: dict = _help("Further arguments of the method's class, such as {projector_dim: 2048}.", factory=dict)
    pretrained: bool = _help("Start from timm's published weights instead of a random initialisation.", False)


@dataclass
class DataArguments:
    """Where the images come from and how they are kept."""

    dataset: str = _help(
        "photo-patches (embedded, no download), a Hub id, a folder of images or of parquet files, or a parquet file.",
        "photo-patches",
    )
    dataset_config: str | None = _help("Configuration (subset) name of a Hub dataset.")
    train_split: str = _help("Split to train on.", "train")
    eval_split: str | None = _help("Split to evaluate on; by default the first of validation, valid, val, test.")
    eval_holdout: float = _help("Share of the training split held out for evaluation where there is no split.", 0.0)
    image_column: str = _help("Column that holds the images.", "image")
    label_column: str = _help("Column of class labels, for the evaluation alone; it may be absent.", "label")
    streaming: bool = _help("Stream the training split instead of downloading it; needs max_steps.", False)
    image_size: int = _help("Side in pixels of the decoded uint8 images: short side resized, centre cropped.", 256)
    cache: Literal["none", "memory", "disk", "device"] = _help(
        "Keep decoded images: none (decode every time), memory (of the host), disk or device (of the accelerator).",
        "none",
    )
    cache_dir: str | None = _help("Folder of cache: disk; by default that of `datasets`, HF_DATASETS_CACHE.")
    jpeg_decoder: Literal["cpu", "gpu"] = _help(
        "Who decodes the JPEGs of training: cpu (the workers), or gpu (nvJPEG, where torchvision has it).", "cpu"
    )
    max_unreadable: float = _help("Share of unreadable images past which the run stops with an error.", 0.01)
    max_train_samples: int | None = _help("Train on the first N images only.")
    max_eval_samples: int | None = _help("Evaluate on N images only, evenly spaced over the split.")

    def check(self) -> None:
        """Raises ValueError for values that cannot work."""
        if not 0 <= self.max_unreadable < 1:
            raise ValueError(f"max_unreadable is {self.max_unreadable}; it is a share in [0, 1), such as 0.01")
        if not 0 <= self.eval_holdout < 1:
            raise ValueError(f"eval_holdout is {self.eval_holdout}; it is a share in [0, 1), such as 0.1")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it is a side in pixels, such as 256")
        if self.streaming and self.cache != "none":
            raise ValueError(f"cache is {self.cache} with streaming: true; a stream is not kept, set cache: none")
        if self.jpeg_decoder == "gpu" and (self.streaming or self.cache != "none"):
            what = "streaming: true" if self.streaming else f"cache: {self.cache}, which is filled by the CPU"
            raise ValueError(f"jpeg_decoder is gpu with {what}; set jpeg_decoder: cpu")


@dataclass
class ViewArguments:
    """The augmentation chain, its curriculum (Super Progressive Learning, Sec. 3.2) and Hard Augment (Sec. 3.3)."""

    resolution: int = _help("Side in pixels of the training views, r_max of the curriculum.", 224)
    min_resolution: int | None = _help("r_min of the curriculum; needed unless resolution_schedule is constant.")
    resolution_schedule: Literal["constant", "progressive", "super_progressive"] = _help(
        "constant; progressive: r_min to r_max in equal stages; super_progressive: r_max in the warm-up before them.",
        "constant",
    )
    resolution_step: int = _help("Stages are multiples of this many pixels.", 32)
    min_magnitude: float = _help(
        "Strength at the start: of the colour jitter, 5 the SimCLR standard; or of RandAugment, 0 to 30.", 5.0
    )
    max_magnitude: float = _help("Strength at the end; linear in between.", 5.0)

    num_views: int = _help("Views an image, m of Hard Augment.", 2)
    selection: Literal["none", "hard", "random"] = _help(
        "Which two of the views train: none (there are two), hard (highest loss, Eq. 10) or random.", "none"
    )
    selection_resolution: int = _help("Side in pixels at which the pairs are compared, r_sel.", 64)
    selection_render: Literal["direct", "downsample"] = _help(
        "The views compared: direct (rendered at r_sel) or downsample (in full, then resized, as Algorithm 1 has it).",
        "direct",
    )
    selection_precision: Literal["training", "bf16"] = _help(
        "Of the pass that compares: that of training, or bf16 where the device has it.", "training"
    )
    selection_score: Literal["cosine", "loss"] = _help(
        "What makes a pair hard: cosine (negative cosine, Algorithm 1) or loss (the method's own, an image).", "cosine"
    )

    augmentation: Literal["simclr", "randaugment"] = _help(
        "What follows crop and flip: simclr (jitter, grayscale, blur, solarize) or randaugment (none of these).",
        "simclr",
    )
    randaugment_ops: int = _help("Random operations an image with randaugment, n.", 2)
    extra_targets: bool = _help(
        "Small views that were not chosen are targets as well (Table 9); with random selection it is multi-crop.",
        False,
    )

    crop_scale: list[float] = _help(
        "Smallest and largest share of the image's area in a crop.", factory=lambda: [0.2, 1.0]
    )
    crop_ratio: list[float] = _help("Smallest and largest width / height of a crop.", factory=lambda: [3 / 4, 4 / 3])
    flip_p: float = _help("Probability of a horizontal flip.", 0.5)
    jitter: list[float] = _help(
        "Brightness, contrast, saturation and hue ranges at magnitude 5.", factory=lambda: [0.4, 0.4, 0.4, 0.1]
    )
    jitter_p: float = _help("Probability of the colour jitter.", 0.8)
    grayscale_p: float = _help("Probability of a conversion to grayscale.", 0.2)
    blur_p: list[float] = _help(
        "Probability of a Gaussian blur; two values where the first and the second view differ (BYOL, DINO).",
        factory=lambda: [0.5],
    )
    blur_sigma: list[float] = _help(
        "Smallest and largest sigma of the blur, in pixels of a 224 px view.", factory=lambda: [0.1, 2.0]
    )
    solarize_p: list[float] = _help(
        "Probability of solarization; two values where the first and the second view differ.", factory=lambda: [0.0]
    )
    view_executor: Literal["fused", "kornia"] = _help(
        "What makes the same pixels: fused, or kornia (one operation after the other; always so with randaugment).",
        "fused",
    )
    compile_views: bool | None = _help("Compile the fused colours; by default on a GPU, on a CPU it takes 20 s once.")

    def check(self) -> None:
        """Raises ValueError for values that cannot work."""
        self._check_resolutions()
        self._check_selection()
        for name in ("flip_p", "jitter_p", "grayscale_p", "blur_p", "solarize_p"):
            value = getattr(self, name)
            values = value if isinstance(value, list) else [value]
            if len(values) not in (1, 2) or not all(0 <= p <= 1 for p in values):
                raise ValueError(f"{name} is {value}; it takes probabilities in [0, 1], one or one for each view")
        for name, choices in (
            ("view_executor", ("fused", "kornia")),
            ("selection_render", ("direct", "downsample")),
            ("selection_precision", ("training", "bf16")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is {' or '.join(choices)}")
        for name, low in (("crop_scale", 0.0), ("crop_ratio", 0.0), ("blur_sigma", 0.0)):
            value = getattr(self, name)
            if len(value) != 2 or not low < value[0] <= value[1]:
                raise ValueError(f"{name} is {value}; it takes [smallest, largest], both above {low:g}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; a crop holds at most the whole image, [0.2, 1.0]")
        if len(self.jitter) != 4 or min(self.jitter) < 0:
            raise ValueError(
                f"jitter is {self.jitter}; it takes [brightness, contrast, saturation, hue], none below 0"
            )
        self._check_magnitudes()

    def _check_magnitudes(self) -> None:
        if self.augmentation not in ("simclr", "randaugment"):
            raise ValueError(f"augmentation is {self.augmentation!r}; it is simclr or randaugment")
        if not 1 <= self.randaugment_ops <= 15:
            raise ValueError(f"randaugment_ops is {self.randaugment_ops}; RandAugment has 15, take 1 to 15, such as 2")
        if self.augmentation == "randaugment":
            if not (0 <= self.min_magnitude <= 30 and 0 <= self.max_magnitude <= 30):
                raise ValueError(
                    f"magnitudes are {self.min_magnitude} to {self.max_magnitude}; RandAugment's scale is 0 to 30"
                )
            return
        largest_hue = self.jitter[3] * max(self.min_magnitude, self.max_magnitude) / 5
        if min(self.min_magnitude, self.max_magnitude) < 0 or largest_hue > 0.5:
            raise ValueError(
                f"magnitudes are {self.min_magnitude} to {self.max_magnitude} with hue {self.jitter[3]}; they must be "
                f"at least 0, and hue x magnitude / 5 at most 0.5: lower max_magnitude or the hue of jitter"
            )

    @property
    def has_selection_pass(self) -> bool:
        """Whether all m views are rendered small and embedded, to choose a pair or to give extra targets."""
        return self.selection == "hard" or self.extra_targets

    def _check_resolutions(self) -> None:
        if self.resolution_step < 1:
            raise ValueError(f"resolution_step is {self.resolution_step}; it is a number of pixels, such as 32")
        if self.resolution_schedule != "constant" and self.min_resolution is None:
            raise ValueError(
                f"resolution_schedule is {self.resolution_schedule} without min_resolution; set it, such as "
                f"min_resolution: 96, or resolution_schedule: constant"
            )
        for name in ("resolution", "min_resolution"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value % self.resolution_step):
                below = max(value // self.resolution_step, 1) * self.resolution_step
                raise ValueError(
                    f"{name} is {value}, no multiple of resolution_step {self.resolution_step}; take {below} or "
                    f"{below + self.resolution_step}, or set another resolution_step"
                )
        if self.min_resolution is not None and self.min_resolution > self.resolution:
            raise ValueError(
                f"min_resolution is {self.min_resolution}, above resolution {self.resolution}; lower it to that"
            )

    def _check_selection(self) -> None:
        if self.num_views < 2:
            raise ValueError(f"num_views is {self.num_views}; a pair needs at least 2 views, the paper takes 6")
        if self.selection == "none" and self.num_views != 2:
            raise ValueError(
                f"num_views is {self.num_views} with selection: none, which trains on exactly 2; set selection: hard "
                f"or random, or num_views: 2"
            )
        if self.extra_targets and (self.selection == "none" or self.num_views < 3):
            raise ValueError(
                f"extra_targets is true with selection {self.selection} and num_views {self.num_views}, which leave "
                f"no view over; set selection: hard or random and num_views: 3 or more"
            )
        if self.has_selection_pass and not 1 <= self.selection_resolution <= self.resolution:
            raise ValueError(
                f"selection_resolution is {self.selection_resolution}; it lies between 1 and resolution "
                f"{self.resolution}, the paper takes 64 of 224"
            )


@dataclass
class SSLTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the paper's defaults, its learning-rate schedules and the evaluation."""

    output_dir: str | None = _help("Folder of the run: checkpoints, metrics, pictures and the backbone.", "runs/essl")
    per_device_train_batch_size: int = _help("Images a step and process.", 128)
    per_device_eval_batch_size: int = _help("Images a batch and process in evaluation.", 256)
    learning_rate: float = _help("Peak learning rate, as given: it is not scaled with the batch.", 0.05)
    weight_decay: float = _help("Weight decay, on every parameter, biases and normalisations included.", 5e-4)
    num_train_epochs: float = _help("Passes over the training split.", 200)
    optim: str = _help("Optimizer, by the names of transformers.TrainingArguments.", "sgd")
    max_grad_norm: float = _help("Gradient clipping by norm; 0 is off, as in the paper.", 0.0)
    remove_unused_columns: bool = _help("Kept off: the batch is an image.", False)
    logging_nan_inf_filter: bool = _help("Kept off: a filtered loss hides divergence.", False)
    logging_steps: float = _help("Log every so many optimizer steps.", 10)
    save_total_limit: int | None = _help("Checkpoints kept; the oldest goes first.", 2)
    ddp_find_unused_parameters: bool | None = _help("Every parameter takes part in the loss.", False)
    dataloader_drop_last: bool = _help("Drop the last, smaller batch of an epoch.", True)

    lr_schedule: Literal["cosine", "cosine_warmup", "one_cycle", "f1_clr", "constant"] = _help(
        "cosine (Eq. 5), cosine_warmup (Eq. 6), one_cycle (1-CLR, Eq. 7), f1_clr (F1-CLR, Eq. 8) or constant.",
        "cosine",
    )
    warmup_epochs: float = _help("Warm-up t_w in epochs of num_train_epochs, for f1_clr and cosine_warmup.", 0.0)
    one_cycle_fraction: float = _help("Share of the run in the first phase of one_cycle, rho of Eq. 7.", 0.3)
    momentum: float = _help("Momentum of SGD where the schedule leaves it alone.", 0.9)
    min_momentum: float = _help("Lowest momentum of the cycle, reached at the peak learning rate.", 0.85)
    max_momentum: float = _help("Highest momentum of the cycle, at its start and end.", 0.95)
    batch_growth: int = _help(
        "At low resolutions train on (r_max / r)^2 batches at once, at most N, at as many times the learning rate.", 1
    )
    fix_predictor_lr: bool = _help("Hold the predictor's learning rate at the peak value, as SimSiam publishes.", True)

    knn_every_epochs: int = _help("Evaluate by k nearest neighbours every N epochs; 0: at start and end only.", 0)
    knn_k: int = _help("Neighbours of the kNN evaluation.", 20)
    knn_temperature: float = _help("Temperature of the kNN votes, exp(cosine / T).", 0.07)
    online_probe: bool = _help("Train a linear classifier beside the backbone, from features without gradient.", False)
    on_divergence: Literal["stop", "warn"] = _help(
        "Where the loss is NaN or infinite or the embedding has collapsed: stop with a checkpoint, or warn and go on.",
        "stop",
    )
    sync_batchnorm: bool = _help(
        "BatchNorm statistics over all GPUs; not for MoCo, whose keys they would betray.", True
    )
    channels_last: bool = _help("Keep weights channels last: faster on a GPU, and on a CPU from some 48 px on.", True)
    energy_country: str | None = _help("Measure kWh and kgCO2e with codecarbon, by this country's grid: FRA, USA …")
    overwrite_output_dir: bool = _help("Start anew in an output folder that holds a run already.", False)
    measure_speedup: bool = _help("Time steps of the plain recipe at the end, for the measured speed-up.", True)

    def __post_init__(self):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # else transformers would run every process by itself, on all of the images
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers wants it said
        if self.bf16 and self.use_cpu and not cpu_has_bf16():
            logger.warning("bf16 is off: this CPU has no bfloat16 and would be some ten times slower emulating it")
            self.bf16 = False
        super().__post_init__()

    def check(self) -> None:
        """Raises ValueError for values that cannot work."""
        if self.batch_growth < 1:
            raise ValueError(f"batch_growth is {self.batch_growth}; it is a number of batches from 1 on, such as 4")
        if self.batch_growth > 1 and (self.fp16 or self.gradient_accumulation_steps > 1):
            other = "fp16" if self.fp16 else f"gradient_accumulation_steps {self.gradient_accumulation_steps}"
            raise ValueError(f"batch_growth is {self.batch_growth} with {other}; set batch_growth: 1, or drop {other}")
        if self.lr_schedule in ("f1_clr", "cosine_warmup"):
            if not self.warmup_epochs > 0:
                raise ValueError(
                    f"warmup_epochs is {self.warmup_epochs}; lr_schedule {self.lr_schedule} needs one above 0"
                )
            if self.warmup_epochs >= self.num_train_epochs:
                raise ValueError(
                    f"warmup_epochs is {self.warmup_epochs:g}, not shorter than num_train_epochs "
                    f"{self.num_train_epochs:g}; shorten the warm-up or lengthen the run"
                )
        elif self.warmup_epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} with lr_schedule {self.lr_schedule}, which has none; "
                f"take f1_clr or cosine_warmup, or drop warmup_epochs"
            )
        if self.report_to not in (None, "none", []):
            from hf_essl.tracking import check_trackers  # imports timm

            check_trackers(self.report_to)
        if self.energy_country is not None:
            check_country(self.energy_country)
        self._check_hub()
        if self.lr_schedule == "one_cycle" and not 0 < self.one_cycle_fraction < 1:
            raise ValueError(
                f"one_cycle_fraction is {self.one_cycle_fraction}; it is a share between 0 and 1, such as 0.3"
            )
        if not 0 <= self.min_momentum <= self.max_momentum < 1:
            raise ValueError(
                f"min_momentum and max_momentum are {self.min_momentum} and {self.max_momentum}; they lie in [0, 1), "
                f"the smaller first"
            )

    def _check_hub(self) -> None:
        if self.hub_token is not None:
            raise ValueError(
                "hub_token is set, which every checkpoint would hold; set HF_TOKEN or run `hf auth login`"
            )
        if self.hub_strategy == "all_checkpoints":
            raise ValueError(
                "hub_strategy is all_checkpoints, whose pickles are not pushed; take end, every_save, or checkpoint, "
                "which pushes the weights of heads, teacher and queue as well"
            )

    @property
    def folder(self) -> Path:
        """`output_dir`, the folder of the run."""
        return Path(self.output_dir or ".")

    @property
    def warmup_fraction(self) -> float:
        """Share of the run in the first phase: t_w / L (Eq. 6, 8) or rho (Eq. 7), 0 where the schedule has none.

        A share, not a number of steps, so that `max_steps` shortens a whole recipe to a rehearsal of the same shape,
        while another `num_train_epochs` stretches the annealing alone, which is what F1-CLR is about.
        """
        if self.lr_schedule == "one_cycle":
            return self.one_cycle_fraction
        return self.warmup_epochs / self.num_train_epochs


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AVX512-BF16, AMX or ARMv8.6)."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
