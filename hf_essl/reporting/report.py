"""The report of a finished run: the files in its folder, and the table on the screen."""

import json
from pathlib import Path

from hf_essl.common import write_text
from hf_essl.data import ImageDataset, sample_images
from hf_essl.recipe import Recipe
from hf_essl.reporting.curves import draw_curves, stages_of
from hf_essl.reporting.figures import draw_views
from hf_essl.reporting.metrics import Metrics, show
from hf_essl.schedules import Curriculum

ROWS = {
    "kNN accuracy": ("knn_accuracy",),
    "  at random initialization": ("random_init_knn_accuracy",),
    "online linear probe": ("probe_accuracy",),
    "view retrieval": ("retrieval",),
    "  at random initialization ": ("random_init_retrieval",),
    "RankMe (effective rank)": ("rankme",),
    "  at random initialization  ": ("random_init_rankme",),
    "feature std": ("feature_std",),
    "cost, counted": ("petaflops",),
    "cost, paper's convention": ("petaflops_paper_convention",),
    "speed-up over the plain recipe at equal epochs": (),
    "  predicted from FLOPs": ("predicted_speedup",),
    "  predicted, paper's convention": ("predicted_speedup_paper_convention",),
    "  measured in wall-clock": ("measured_speedup",),
    "training": ("train_seconds", "images_per_second"),
    "energy of this machine": ("energy_kwh", "co2e_kg"),
}
"""Names of the rows on the screen, and the keys of `metrics.json` that they show."""
OPTIONAL = ("probe_accuracy", "energy_kwh")  # measured on request only; without a value they have no row


def write_report(
    folder: Path, recipe: Recipe, metrics: Metrics, train: ImageDataset, curriculum: Curriculum
) -> list[Path]:
    """Writes metrics.json, curves.png and views.png into the folder of a run; returns their paths."""
    title = f"{recipe.model.method} · {recipe.model.backbone} · {metrics['dataset']}"
    images, aspect = sample_images(train)
    return [
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2)),
        draw_curves(metrics["history"], folder / "curves.png", title, stages_of(curriculum, metrics["steps"])),
        draw_views(images, recipe.views, curriculum, folder / "views.png", aspect=aspect),
    ]


def result_table(metrics: Metrics) -> str:
    """The results of a run in a few lines; a missing value reads "not measured"."""
    lines, width = [], max(map(len, ROWS))
    for name, keys in ROWS.items():
        values = [shown for key in keys if (shown := show(metrics, key)) is not None]
        if values or not set(keys) & set(OPTIONAL):
            text = ", ".join(values) if len(values) == len(keys) else "not measured"
            lines.append(f"  {name:<{width}}  {text}".rstrip())
    return "\n".join(lines)
