"""The report of a finished run: the files in its folder, and the table on the screen."""

from __future__ import annotations

import json
from pathlib import Path

from hf_essl.common import write_text
from hf_essl.data import ImageDataset, sample_images
from hf_essl.recipe import Recipe
from hf_essl.reporting.figures import draw_curves, draw_views
from hf_essl.reporting.metrics import Metrics
from hf_essl.schedules import Curriculum


def write_report(
    folder: Path, recipe: Recipe, metrics: Metrics, train: ImageDataset, curriculum: Curriculum
) -> list[Path]:
    """Writes metrics.json, curves.png and views.png into the run's folder; returns their paths."""
    title = f"{recipe.model.method} · {recipe.model.backbone} · {metrics['dataset']}"
    return [
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2)),
        draw_curves(metrics["history"], folder / "curves.png", title),
        draw_views(sample_images(train), recipe.views, curriculum, folder / "views.png"),
    ]


def result_table(metrics: Metrics) -> str:
    """The results of a run in a few lines; a missing value reads "not measured"."""

    def show(form: str, *keys: str) -> str:
        values = [metrics[key] for key in keys]
        return form.format(*values) if None not in values else "not measured"

    rows = [
        ("kNN accuracy", show("{:.1f} %", "knn_accuracy")),
        ("  at random initialization", show("{:.1f} %", "random_init_knn_accuracy")),
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
