"""What a finished run says: the table on the screen and the files in its folder."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_essl.cost import Cost
from hf_essl.data import image_count
from hf_essl.files import write_text
from hf_essl.hub.card import write_card
from hf_essl.reporting.figures import draw_curves, draw_views, sample_images

if TYPE_CHECKING:
    from hf_essl.recipe import Recipe
    from hf_essl.trainer import SSLTrainer

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm", "kornia")


def collect_metrics(trainer: SSLTrainer, recipe: Recipe, cost: Cost, plain_step: float | None) -> dict:
    """The results of a run that has ended, as `metrics.json` holds them; None where something was not measured.

    Args:
        cost: the prediction for the whole run.
        plain_step: measured seconds of a step of the plain recipe.
    """
    history, state = trainer.state.log_history, trainer.state
    evaluations = [entry for entry in history if "eval_feature_std" in entry]
    last = evaluations[-1] if evaluations else {}
    first = evaluations[0] if evaluations and evaluations[0]["step"] == 0 else {}  # of the random initialisation
    seconds, images = trainer.clock.seconds, cost.images_per_step * state.global_step
    return {
        "run": recipe.training.folder.resolve().name,
        "command": recipe.command(trainer.args.world_size),
        "method": recipe.model.method,
        "backbone": recipe.model.backbone,
        "parameters": sum(p.numel() for p in trainer.model.backbone.parameters()),
        "dataset": trainer.train_dataset.name,
        "train_images": image_count(trainer.train_dataset),
        "bank_images": image_count(trainer.bank_dataset),
        "eval_images": image_count(trainer.eval_dataset),
        "epochs": state.epoch,
        "steps": state.global_step,
        "images_per_step": cost.images_per_step,
        "knn_accuracy": last.get("eval_knn_accuracy"),
        "probe_accuracy": last.get("eval_probe_accuracy"),
        "random_init_knn_accuracy": first.get("eval_knn_accuracy"),
        "feature_std": last.get("eval_feature_std"),
        "random_init_feature_std": first.get("eval_feature_std"),
        "embedding_std": next((e["feature_std"] for e in reversed(history) if "feature_std" in e), None),
        "rankme": last.get("eval_rankme"),
        "petaflops": state.total_flos / 1e15,
        "petaflops_paper_convention": cost.paper_petaflops,
        "petaflops_by_part": {
            "forward": cost.measured_forward_petaflops,
            "backward": cost.measured_backward_petaflops,
            "teacher": cost.measured_teacher_petaflops,
            "selection": cost.measured_selection_petaflops,
        },
        "predicted_speedup": cost.measured_speedup,
        "predicted_speedup_paper_convention": cost.paper_speedup,
        "measured_speedup": plain_step * state.global_step / seconds if plain_step and seconds else None,
        "plain_step_seconds": plain_step,
        "energy_kwh": None,
        "co2e_kg": None,
        **trainer.energy_so_far(),
        "train_seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "unreadable_images": len(trainer.unreadable.found) + trainer.train_dataset.left_out,
        "device": describe_device(trainer.args.device),
        "processes": trainer.args.world_size,
        "versions": {"hf_essl": version("hf-essl"), **{name: version(name) for name in PACKAGES}},
        "history": history,
    }


def describe_device(device: torch.device) -> str:
    """The accelerator's name, or the processor's kind and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def write_report(trainer: SSLTrainer, recipe: Recipe, metrics: dict) -> list[Path]:
    """Writes metrics.json, curves.png, views.png and the backbone with its card into the run's folder.

    Returns their paths.
    """
    folder = recipe.training.folder
    title = f"{recipe.model.method} · {recipe.model.backbone} · {metrics['dataset']}"
    written = [
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2)),
        draw_curves(metrics["history"], folder / "curves.png", title),
        draw_views(
            sample_images(trainer.train_dataset), recipe.views, recipe.training.warmup_fraction, folder / "views.png"
        ),
        trainer.export_backbone(folder / "backbone"),
    ]
    write_card(folder / "backbone", metrics, recipe)
    return written


def result_table(metrics: dict) -> str:
    """The end of a run in a few lines; what was not measured says so."""

    def show(form: str, *keys: str) -> str:
        values = [metrics[key] for key in keys]
        return form.format(*values) if None not in values else "not measured"

    rows = [
        ("kNN accuracy", show("{:.1f} %", "knn_accuracy")),
        ("  at random initialisation", show("{:.1f} %", "random_init_knn_accuracy")),
        ("feature std", show("{:.4f}", "feature_std")),
        ("RankMe (effective rank)", show("{:.1f}", "rankme")),
        ("cost, counted", show("{:.4g} petaFLOPs", "petaflops")),
        ("cost, paper's convention", show("{:.4g} petaFLOPs", "petaflops_paper_convention")),
        ("speed-up over the plain recipe at equal epochs", ""),
        ("  predicted from FLOPs", show("{:.2f} x", "predicted_speedup")),
        ("  predicted, paper's convention", show("{:.2f} x", "predicted_speedup_paper_convention")),
        ("  measured in wall-clock", show("{:.2f} x", "measured_speedup")),
        ("training", show("{:.0f} s, {:.0f} images/s", "train_seconds", "images_per_second")),
    ]
    if metrics.get("probe_accuracy") is not None:
        rows.insert(2, ("online linear probe", show("{:.1f} %", "probe_accuracy")))
    if metrics.get("energy_kwh") is not None:
        rows.append(("energy of this machine", show("{:.3g} kWh, {:.3g} kgCO2e", "energy_kwh", "co2e_kg")))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)
