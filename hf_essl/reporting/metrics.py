"""`metrics.json`: the results of a run, written from its facts and read back, also from older runs."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from hf_essl.common import one_line
from hf_essl.config.redact import without_paths
from hf_essl.config.training import WHOLE_SQUARE
from hf_essl.cost import Cost, peak_flops
from hf_essl.data.decode import CANVAS
from hf_essl.recipe import Recipe
from hf_essl.run_folder import RECIPE, progress

Metrics = dict[str, Any]  # the content of `metrics.json`, or the JSON of `hf-essl evaluate`

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm", "kornia")
PETAFLOPS, LARGE = ("petaflops", "petaflops_paper_convention"), "{:,.0f} petaFLOPs"
FORMS = {
    **dict.fromkeys(("knn_accuracy", "random_init_knn_accuracy", "probe_accuracy"), "{:.1f} %"),
    **dict.fromkeys(("retrieval", "random_init_retrieval"), "{:.1f} %"),
    **dict.fromkeys(("rankme", "random_init_rankme"), "{:.1f}"),
    **dict.fromkeys(("feature_std", "random_init_feature_std"), "{:.4f}"),
    **dict.fromkeys(PETAFLOPS, "{:.3g} petaFLOPs"),
    **dict.fromkeys(("predicted_speedup", "predicted_speedup_paper_convention", "measured_speedup"), "{:.2f} x"),
    "epochs": "{:.4g}",
    "train_seconds": "{:.0f} s",
    "images_per_second": "{:.0f} images/s",
    "tflops_per_second": "{:.3g} TFLOP/s",
    "mfu_percent": "{:.1f} % MFU",
    "energy_kwh": "{:.3g} kWh",
    "co2e_kg": "{:.3g} kgCO2e",
}
"""How the reports round a value of `metrics.json`, with its unit; the others are integers."""
OLD_NAMES = {
    "feature_std": "embedding_std",
    "feature_spread": "embedding_spread",
    "selection_score": "selection_pair_score",
}
"""Older names in the log entries of training steps, and today's; evaluation entries have `eval_*` names."""
EVIDENCE = ("knn_accuracy", "retrieval", "feature_std", "rankme")
"""Results that `metrics.json` has for the end of the run, and as `random_init_*` for its start."""
COUNTED = tuple("parameters dataset train_images bank_images eval_images unreadable_images processes".split())
"""Facts of a run that `metrics.json` contains unchanged."""


@dataclass(frozen=True)
class RunFacts:
    """The facts of a finished run that its report needs; None for what is not known."""

    recipe: Recipe
    cost: Cost  # predicted for the whole run
    state: TrainerState
    seconds: float  # of training, without evaluation and saving
    plain_step_seconds: float | None  # measured, of the plain recipe
    parameters: int
    dataset: str
    train_images: int | None
    bank_images: int | None
    eval_images: int | None
    unreadable_images: int
    images_seen: int  # in all steps, by all processes
    energy: dict[str, float]  # energy_kwh and co2e_kg; empty if they were not measured
    device: torch.device
    processes: int
    once_seconds: float = 0.0  # of `seconds`, before the first step, which the plain recipe would need too


def collect_metrics(run: RunFacts) -> Metrics:
    """The content of `metrics.json` for a finished run; None for what was not measured."""
    state, cost, seconds, plain_step = run.state, run.cost, run.seconds, run.plain_step_seconds
    images = run.images_seen or cost.images_per_step * state.global_step
    return {
        "run": run.recipe.training.folder.resolve().name,
        "command": run.recipe.command(run.processes),
        "method": run.recipe.model.method,
        "backbone": without_paths(run.recipe.model.backbone),
        "pretrained": run.recipe.model.pretrained,
        **{name: getattr(run, name) for name in COUNTED},
        "canvas": f"{run.recipe.data.image_size} px: {CANVAS}",
        "epochs": state.epoch,
        "steps": state.global_step,
        "images_per_step": cost.images_per_step,
        "resolution": run.recipe.views.resolution,
        "crop_pct": run.recipe.training.eval_crop_pct,
        **_quality(state.log_history),
        "petaflops": state.total_flos / 1e15,
        "petaflops_paper_convention": cost.paper_petaflops,
        "petaflops_by_part": petaflops_by_part(cost),
        "selection_overhead": cost.paper_selection_overhead,
        "predicted_speedup": cost.counted_speedup,
        "predicted_speedup_paper_convention": cost.paper_speedup,
        "measured_speedup": _measured_speedup(run),
        "plain_step_seconds": plain_step,
        "energy_kwh": run.energy.get("energy_kwh"),
        "co2e_kg": run.energy.get("co2e_kg"),
        "train_seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        **_utilization(state.total_flos / seconds if seconds else None, run),
        "device": describe_device(run.device),
        "changes": [change._asdict() for change in run.recipe.changes],
        "versions": {"hf_essl": version("hf-essl"), **{name: version(name) for name in PACKAGES}},
        "history": state.log_history,
    }


def _quality(history: list[dict[str, float]]) -> Metrics:
    """The results of the last evaluation, and of the one before training."""
    evaluations = [entry for entry in history if "eval_feature_std" in entry] or [{}]
    first, last = evaluations[0] if evaluations[0].get("step") == 0 else {}, evaluations[-1]
    found: Metrics = {"probe_accuracy": last.get("eval_probe_accuracy")}
    for name in EVIDENCE:
        found |= {name: last.get(f"eval_{name}"), f"random_init_{name}": first.get(f"eval_{name}")}
    found["embedding_std"] = next((e["embedding_std"] for e in reversed(history) if "embedding_std" in e), None)
    return found


def _measured_speedup(run: RunFacts) -> float | None:
    if not run.plain_step_seconds or not run.seconds:
        return None
    return (run.plain_step_seconds * run.state.global_step + run.once_seconds) / run.seconds


def _utilization(flops_per_second: float | None, run: RunFacts) -> Metrics:
    """Model FLOP/s, in teraFLOPs, and their share of what the GPUs can do, in percent; None if that is not known."""
    peak = peak_flops(run.device)
    known = flops_per_second is not None and peak is not None
    return {
        "tflops_per_second": None if flops_per_second is None else flops_per_second / 1e12,
        "mfu_percent": 100 * flops_per_second / (peak * run.processes) if known else None,  # type: ignore[operator]
    }


def petaflops_by_part(cost: Cost) -> dict[str, float]:
    """The counted petaFLOPs of each part of the steps."""
    local = cost.counted_local_petaflops
    return {
        "forward": cost.counted_forward_petaflops,
        "backward": cost.counted_backward_petaflops,
        "teacher": cost.counted_teacher_petaflops,
        "selection": cost.counted_selection_petaflops,
        **({"local views": local} if local else {}),
    }


def read_metrics(run: str | Path) -> Metrics:
    """The `metrics.json` in the folder of a finished run; an older run gets its crop and today's names in the log.

    Raises ValueError if the file is missing or does not describe a run.
    """
    path = Path(run) / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = f"{path.name}: {error.strerror}" if isinstance(error, OSError) else one_line(error)
        raise ValueError(f"{run} is not a finished run ({why}); {_completion(Path(run))}") from error
    if not isinstance(metrics, dict) or "method" not in metrics:
        raise ValueError(f"{path} does not describe a run; `hf-essl pretrain` writes one")
    metrics.setdefault("crop_pct", WHOLE_SQUARE)
    for entry in metrics.get("history", ()):
        if "loss" in entry:
            entry |= {new: entry.pop(old) for old, new in OLD_NAMES.items() if old in entry}
    return metrics


def _completion(run: Path) -> str:
    """How to get the report of a run without one."""
    if not (run / RECIPE).is_file():
        return "pass a folder that contains metrics.json"
    steps = progress(run)
    if steps is None:
        return f"it has no whole checkpoint: start it again with `hf-essl pretrain {run / RECIPE}`"
    return (
        f"it stopped at step {steps[0]} of {steps[1]}: "
        f"`hf-essl pretrain {run / RECIPE} --resume_from_checkpoint true` completes it"
    )


def show(metrics: Metrics, key: str) -> str | None:
    """A value of `metrics.json`, rounded and with its unit; None if it was not measured."""
    value = metrics.get(key)
    if value is None:
        return None
    form = LARGE if key in PETAFLOPS and value >= 1000 else FORMS.get(key, "{:,}")
    return form.format(value)


def start_of(metrics: Metrics) -> str:
    """What a run started from, in words."""
    return "at the start" if metrics.get("pretrained") else "at random initialization"


def describe_device(device: torch.device) -> str:
    """The accelerator's name, or the processor's architecture and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads != 1)}"
