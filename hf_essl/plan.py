"""The settings of a run without a recipe: chosen from the images and the machine, each with its reason.

Whatever the user sets wins. Warm-up, curriculum and learning rate have the proportions of the paper's Table 10.
"""

import math
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from hf_essl.data.builtin import built_in
from hf_essl.data.cache import free_memory, usable_cores
from hf_essl.data.survey import Survey

WARMUP = 80 / 480  # share of the run (Table 10)
REFERENCE_BATCH, REFERENCE_RATE = 128, 0.1  # SGD with F1-CLR (Table 10)
ADAM_BATCH, ADAM_RATE = 256, 1e-3
CPU_BACKBONE, GPU_BACKBONE = "test_resnet", "resnet50"
CPU_STEPS, GPU_STEPS = 2_000, 20_000  # of a run, at least
CPU_EPOCHS, GPU_EPOCHS = 10, 100  # at least
FEW_STEPS = 500
LEAST_IMAGES = 8  # of a batch in one process
SHORT_QUEUE = 2 * 65_536  # images; with fewer, MoCo's own queue would hold most of them
HOLDOUT, SMALL_HOLDOUT, HOLDOUT_IMAGES = 0.1, 0.2, 60  # a small set holds out up to a fifth, to have 60 images
REASON = 38  # column of the reasons


@dataclass(frozen=True)
class Machine:
    """What the plan needs to know of the machine."""

    device: str  # cpu, cuda, …
    cores: int
    free_memory: int  # bytes of the host
    free_disk: int  # bytes of the cache folder
    has_bf16: bool = False
    processes: int = 1  # of the run
    machines: int = 1  # that share them

    @property
    def local_processes(self) -> int:
        return max(self.processes // self.machines, 1)

    @classmethod
    def here(
        cls, use_cpu: bool = False, processes: int = 1, machines: int = 1, cache_dir: str | None = None
    ) -> "Machine":
        gpu = torch.accelerator.is_available() and not use_cpu
        device = torch.accelerator.current_accelerator().type if gpu else "cpu"  # type: ignore[union-attr]
        return cls(
            device=device,
            cores=usable_cores(),
            free_memory=free_memory(),
            free_disk=shutil.disk_usage(
                _existing(Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser())
            ).free,
            has_bf16=device == "cuda" and torch.cuda.is_bf16_supported(),
            processes=processes,
            machines=machines,
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


@dataclass(frozen=True)
class Choice:
    """A setting of the plan, and why."""

    name: str
    value: Any
    reason: str

    def describe(self) -> str:
        """The setting as an option, and the reason beside it or, if it is long, below it."""
        option = f"--{self.name} {_shown(self.value)}"
        if not self.reason:
            return option
        reason = textwrap.wrap(self.reason, max(shutil.get_terminal_size().columns - REASON, 30))
        first = [f"{option:<{REASON - 2}}  {reason.pop(0)}"] if len(option) <= REASON - 2 else [option]
        return "\n".join([*first, *(" " * REASON + line for line in reason)])


@dataclass
class Plan:
    """The choices for one run. `given` are the fields that the user has set."""

    dataset: str
    survey: Survey
    machine: Machine
    given: Mapping[str, Any]
    images: int = 0  # that train
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def choose(self, name: str, value: Any, reason: str) -> Any:
        """Records a choice, unless the user has set the field; returns the value that holds."""
        if name in self.given:
            return self.given[name]
        self.choices.append(Choice(name, value, reason))
        return value

    @property
    def fields(self) -> dict[str, Any]:
        return {"dataset": self.dataset} | {choice.name: choice.value for choice in self.choices}

    @property
    def on_cpu(self) -> bool:
        return self.machine.device == "cpu"

    def describe(self) -> str:
        """The plan as text: what was found, each setting with its reason, and warnings."""
        found = self.survey
        labels = f"{found.classes} classes" if found.classes else "no labels"
        lines = [
            f"{self.dataset}: {found.train_images:,} training images, {found.eval_images:,} to evaluate on, {labels}"
        ]
        lines += [f"  {line}" for line in found.notices]
        lines += ["", *(choice.describe() for choice in self.choices), ""]
        lines += [f"warning: {line}" for line in self.warnings]
        return "\n".join(lines).rstrip()


def make_plan(
    dataset: str,
    found: Survey,
    machine: Machine,
    given: Mapping[str, Any],
    find_batch: Callable[[dict[str, Any]], int] | None = None,
) -> Plan:
    """Chooses every setting that the user has not given.

    Args:
        found: the images of the dataset.
        given: fields of a recipe that the user has set, by name.
        find_batch: finds the largest batch that fits in the GPU's memory, from the fields chosen so far.

    Raises ValueError for fewer images than a batch that the user has set.
    """
    plan = Plan(dataset, found, machine, given)
    _network(plan)
    _pixels(plan)
    held_out = _evaluation(plan)
    images = plan.images = found.train_images - held_out
    batch = _batch(plan, images, find_batch)
    _heads(plan, images)
    _optimizer(plan, batch)
    _length(plan, images, batch)
    _loading(plan, images + held_out + found.eval_images)
    plan.choose("output_dir", str(run_folder_of(dataset)), "the name of the data set")
    return plan


def run_folder_of(dataset: str) -> Path:
    """The folder of a run on a dataset."""
    path = Path(dataset)
    name = path.resolve().name if path.is_dir() else path.stem if path.exists() else dataset
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "images")


def _network(plan: Plan) -> None:
    if plan.on_cpu:
        plan.choose("backbone", CPU_BACKBONE, "no GPU: a network of 0.4 M parameters")
    else:
        plan.choose("backbone", GPU_BACKBONE, "the paper's network")
    plan.choose("method", "simsiam", "the cheapest: no teacher, no negatives")


def _heads(plan: Plan, images: int) -> None:
    fields = {**plan.fields, **plan.given}
    heads = _small_heads(fields["method"]) if fields["backbone"] == CPU_BACKBONE else {}
    reasons = ["heads in proportion to the network"] if heads else []
    if fields["method"] == "mocov2" and images < SHORT_QUEUE:
        once = plan.machine.processes * int(fields.get("per_device_train_batch_size", LEAST_IMAGES))
        heads |= {"queue_length": 2 ** int(math.log2(max(min(images // 2, images - once - 1), 2)))}
        reasons.append("a queue of at most half of the images")
    if heads:
        plan.choose("method_args", heads, ", ".join(reasons))


def _small_heads(method: str) -> dict[str, Any]:
    """Heads for a network of 0.4 M parameters: about a fifth of the published sizes, as in the quickstart recipes."""
    heads = {"simsiam": {"projector_dim": 512, "predictor_hidden": 128}}
    teacher = {"projector_hidden": 512, "projector_dim": 128}
    heads |= {"byol": teacher | {"predictor_hidden": 256}, "simclr": teacher, "mocov2": {"projector_hidden": 512}}
    return heads.get(method, {})


def _pixels(plan: Plan) -> None:
    """Resolution, curriculum, Hard Augment, and the canvas that crops are taken from."""
    step, goal = (16, 64) if plan.on_cpu else (32, 224)
    side = plan.survey.short_side
    full = goal if side is None else min(goal, max(side // step * step, 2 * step))
    reason = "small enough for a CPU" if plan.on_cpu else "the paper's"
    full = plan.choose("resolution", full, reason if full == goal else f"half of the images have at most {side} px")
    step = plan.choose("resolution_step", step if full % step == 0 else 1, "stages are multiples of it")
    smallest = max(round(full * 96 / 224 / step) * step, step)
    plan.choose("resolution_schedule", "super_progressive", "trains small images first, which saves most of the cost")
    plan.choose("min_resolution", smallest, "the paper's 96 of 224 px")
    plan.choose("min_magnitude", 4, "weaker augmentations on small images (Table 12)")
    plan.choose("max_magnitude", 6, "stronger ones at the end (Table 12)")
    selection = plan.choose("selection", "hard", "Hard Augment: train on the hardest pair of views")
    if selection != "none":
        plan.choose("num_views", 4 if plan.on_cpu else 6, "views to choose from; more are slow beside a small network"
                    if plan.on_cpu else "the paper's (Table 8)")  # fmt: skip
        plan.choose("selection_resolution", min(smallest, 64), "px at which pairs are compared")
    canvas = math.ceil(full * 400 / 224 / 16) * 16
    if side is not None and side < canvas:
        canvas = max(math.ceil(side * 1.25 / 16) * 16, full)
    plan.choose("image_size", canvas, "canvas that crops are taken from; few of them are enlarged")


def _evaluation(plan: Plan) -> int:
    """Images to hold out; returns how many training images that takes."""
    found = plan.survey
    share = float(plan.given.get("eval_holdout", 0.0))
    if found.classes and not found.eval_images:
        share = max(HOLDOUT, min(SMALL_HOLDOUT, round(HOLDOUT_IMAGES / found.train_images, 3)))
        share = plan.choose("eval_holdout", share, "there are labels and no evaluation split")
    if found.classes:
        neighbors = max(1, min(20, found.per_class // 2))
        plan.choose("knn_k", neighbors, f"neighbors; the rarest class has {found.per_class:,} images")
    if any("labels are not used" in line or "have no labels" in line for line in found.notices):
        plan.warnings.append("labels that were found are not used, see above; the run is evaluated without them")
    return max(1, round(share * found.train_images)) if share and not found.eval_images else 0


def _batch(plan: Plan, images: int, find_batch: Callable[[dict[str, Any]], int] | None) -> int:
    """The batch of one step over all processes."""
    if total := plan.given.get("total_batch_size"):
        return int(total)
    each = max(images // plan.machine.processes, 1)
    per_epoch = 2 ** int(math.log2(max(each // 3, LEAST_IMAGES)))  # at least three steps per epoch
    if plan.on_cpu or find_batch is None:
        limit, reason = 64 if plan.on_cpu else 128, "a CPU gains nothing from more" if plan.on_cpu else "the paper's"
    else:
        limit = find_batch({**plan.fields, **plan.given}) if "per_device_train_batch_size" not in plan.given else 1
        reason = "the largest that fits in the GPU's memory, of at most 256"
    size = min(limit, per_epoch, each)
    if size < limit:
        reason = f"a third of {each:,} images or less" if 3 * size <= each else f"there are {each:,} images"
    size = plan.choose("per_device_train_batch_size", size, reason)
    once = size * plan.machine.processes
    if images < once and plan.given.get("dataloader_drop_last", True):
        raise ValueError(f"{images} training images do not fill a batch of {once}; lower --batch_size")
    return once * int(plan.given.get("gradient_accumulation_steps", 1))


def _optimizer(plan: Plan, batch: int) -> None:
    optimizer = plan.given.get("optim", "sgd")
    if "adam" in optimizer:
        rate, why = ADAM_RATE * math.sqrt(batch / ADAM_BATCH), f"{ADAM_RATE:g} at {ADAM_BATCH}, square root scaling"
    else:
        rate, why = REFERENCE_RATE * batch / REFERENCE_BATCH, f"{REFERENCE_RATE:g} at {REFERENCE_BATCH} (Table 10)"
    plan.choose("learning_rate", float(f"{rate:.3g}"), f"{why}, here {batch} images per step")
    plan.choose("lr_schedule", "f1_clr", "Fixed 1-cycle: rises, then falls, with opposite momentum")


def _length(plan: Plan, images: int, batch: int) -> None:
    """Epochs, warm-up, and how often the run reports."""
    per_epoch = max(images // batch, 1)
    steps, fewest = (CPU_STEPS, CPU_EPOCHS) if plan.on_cpu else (GPU_STEPS, GPU_EPOCHS)
    epochs = max(math.ceil(steps / per_epoch), fewest)
    if "max_steps" in plan.given and int(plan.given["max_steps"]) > 0:
        epochs, total = math.ceil(int(plan.given["max_steps"]) / per_epoch), int(plan.given["max_steps"])
        plan.choose("num_train_epochs", epochs, "those of max_steps")
    else:
        at_least = f"at least {steps:,} steps" if epochs > fewest else f"at least {fewest} passes over the images"
        epochs = plan.choose("num_train_epochs", epochs, at_least)
        total = math.ceil(float(epochs) * per_epoch)
    if plan.given.get("lr_schedule", "f1_clr") in ("f1_clr", "cosine_warmup"):
        plan.choose(
            "warmup_epochs", float(f"{float(epochs) * WARMUP:.4g}"), "a sixth of the run (Table 10: 80 of 480)"
        )
    plan.choose("logging_steps", max(total // 50, 1), "50 lines in a run")
    plan.choose("knn_every_epochs", max(math.ceil(float(epochs) / 5), 1), "five evaluations in a run")
    plan.choose("save_strategy", "steps", "epochs may be short")
    plan.choose("save_steps", max(total // 5, 1), "five checkpoints in a run, of which two are kept")
    if total < FEW_STEPS:
        longer = "max_steps" if int(plan.given.get("max_steps", -1)) > 0 else "epochs"
        plan.warnings.append(
            f"{total:,} steps are few; at least {FEW_STEPS} are needed to learn much: raise --{longer}"
        )
    left = images % batch
    if left > 0.02 * images:
        plan.warnings.append(
            f"{left} of {images:,} images miss each epoch, other ones each time: they do not fill a batch of {batch}"
        )


def _loading(plan: Plan, images: int) -> None:
    size = int({**plan.fields, **plan.given}["image_size"])
    needed = 3 * size * size * images
    in_memory = needed * plan.machine.local_processes  # each has its own copy
    gigabytes = f"{needed / 1e9:.2g} GB decoded"
    each = " in each process" if plan.machine.local_processes > 1 else ""
    if built_in(plan.dataset) or in_memory < 0.5 * plan.machine.free_memory:
        cache = plan.choose(
            "cache", "memory", f"{gigabytes}{each}, {plan.machine.free_memory / 1e9:.0f} GB of memory are free"
        )
    elif needed < 0.5 * plan.machine.free_disk:
        cache = plan.choose("cache", "disk", f"{gigabytes} do not fit in memory but on the disk")
    else:
        cache = plan.choose("cache", "none", f"{gigabytes} fit neither in memory nor on the disk")
    if cache != "memory":
        workers = max(plan.machine.cores // plan.machine.local_processes - 1, 1)
        plan.choose("dataloader_num_workers", workers, f"{plan.machine.cores} cores")
    if plan.machine.has_bf16 and "fp16" not in plan.given:
        plan.choose("bf16", True, "the GPU computes it twice as fast")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
