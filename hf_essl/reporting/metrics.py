"""`metrics.json`: the results of a run, written from its facts and read back, also from older runs."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from hf_essl.cost import Cost
from hf_essl.recipe import Recipe

Metrics = dict[str, Any]
"""What `metrics.json` holds, or the JSON of `hf-essl evaluate`."""

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm", "kornia")
OLD_NAMES = {
    "feature_std": "embedding_std",
    "feature_spread": "embedding_spread",
    "selection_score": "selection_pair_score",
}
"""Names in the log of a training step before and after they were told apart from the evaluation's."""


@dataclass(frozen=True)
class RunFacts:
    """What a report needs to know of a run that has ended.

    Args:
        cost: the prediction for the whole run.
        state: step, epoch, FLOPs and log.
        seconds: of training, without evaluation and saving.
        plain_step_seconds: measured seconds of a step of the plain recipe.
        energy: kWh and kgCO2e by name, if they were measured.
    """

    recipe: Recipe
    cost: Cost
    state: TrainerState
    seconds: float
    plain_step_seconds: float | None
    parameters: int
    dataset: str
    train_images: int | None
    bank_images: int | None
    eval_images: int | None
    unreadable_images: int
    energy: dict[str, float]
    device: torch.device
    processes: int


def collect_metrics(run: RunFacts) -> Metrics:
    """The results of a run, as `metrics.json` holds them; None for what was not measured."""
    history, state, cost, seconds = run.state.log_history, run.state, run.cost, run.seconds
    evaluations = [entry for entry in history if "eval_feature_std" in entry]
    last = evaluations[-1] if evaluations else {}
    first = evaluations[0] if evaluations and evaluations[0]["step"] == 0 else {}  # of the random initialization
    images, plain_step = cost.images_per_step * state.global_step, run.plain_step_seconds
    return {
        "run": run.recipe.training.folder.resolve().name,
        "command": run.recipe.command(run.processes),
        "method": run.recipe.model.method,
        "backbone": run.recipe.model.backbone,
        "parameters": run.parameters,
        "dataset": run.dataset,
        "train_images": run.train_images,
        "bank_images": run.bank_images,
        "eval_images": run.eval_images,
        "epochs": state.epoch,
        "steps": state.global_step,
        "images_per_step": cost.images_per_step,
        "knn_accuracy": last.get("eval_knn_accuracy"),
        "probe_accuracy": last.get("eval_probe_accuracy"),
        "random_init_knn_accuracy": first.get("eval_knn_accuracy"),
        "feature_std": last.get("eval_feature_std"),
        "random_init_feature_std": first.get("eval_feature_std"),
        "embedding_std": next((e["embedding_std"] for e in reversed(history) if "embedding_std" in e), None),
        "rankme": last.get("eval_rankme"),
        "petaflops": state.total_flos / 1e15,
        "petaflops_paper_convention": cost.paper_petaflops,
        "petaflops_by_part": {
            "forward": cost.counted_forward_petaflops,
            "backward": cost.counted_backward_petaflops,
            "teacher": cost.counted_teacher_petaflops,
            "selection": cost.counted_selection_petaflops,
        },
        "predicted_speedup": cost.counted_speedup,
        "predicted_speedup_paper_convention": cost.paper_speedup,
        "measured_speedup": plain_step * state.global_step / seconds if plain_step and seconds else None,
        "plain_step_seconds": plain_step,
        "energy_kwh": run.energy.get("energy_kwh"),
        "co2e_kg": run.energy.get("co2e_kg"),
        "train_seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "unreadable_images": run.unreadable_images,
        "device": describe_device(run.device),
        "processes": run.processes,
        "versions": {"hf_essl": version("hf-essl"), **{name: version(name) for name in PACKAGES}},
        "history": history,
    }


def read_metrics(run: str | Path) -> Metrics:
    """The `metrics.json` of a finished run; the log of an older run gets today's names.

    Raises:
        ValueError: if there is none.
    """
    try:
        metrics = json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{run} holds no finished run ({error}); pass folders with a metrics.json") from error
    if not isinstance(metrics, dict) or "method" not in metrics:
        raise ValueError(f"{run}/metrics.json does not describe a run; `hf-essl pretrain` writes one")
    if "history" in metrics:
        metrics["history"] = [_renamed(entry) for entry in metrics["history"]]
    return metrics


def describe_device(device: torch.device) -> str:
    """The accelerator's name, or the processor's architecture and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    return {OLD_NAMES.get(name, name): value for name, value in entry.items()}
