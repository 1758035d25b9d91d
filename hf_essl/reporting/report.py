"""The report of a finished run: the files in its folder, and the table on the screen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_essl.data import ImageDataset, sample_images
from hf_essl.recipe import Recipe
from hf_essl.reporting.curves import draw_curves, stages_of
from hf_essl.reporting.figures import Pairs, draw_views
from hf_essl.reporting.metrics import EVIDENCE, Metrics, show, start_of
from hf_essl.reporting.reached import reached_line
from hf_essl.schedules import Curriculum

START = "start"  # the row of the value before training
ROWS = (
    ("kNN accuracy", ("knn_accuracy",)),
    (START, ("random_init_knn_accuracy",)),
    ("online linear probe", ("probe_accuracy",)),
    ("view retrieval", ("retrieval",)),
    (START, ("random_init_retrieval",)),
    ("RankMe (effective rank)", ("rankme",)),
    (START, ("random_init_rankme",)),
    ("feature std (0: collapse)", ("feature_std",)),
    (START, ("random_init_feature_std",)),
    ("cost, counted", ("petaflops",)),
    ("cost, paper's convention", ("petaflops_paper_convention",)),
    ("speed-up over the plain recipe at equal epochs", ()),
    ("  predicted from FLOPs", ("predicted_speedup",)),
    ("  predicted, paper's convention", ("predicted_speedup_paper_convention",)),
    ("  measured in wall-clock", ("measured_speedup",)),
    ("training", ("train_seconds", "images_per_second")),
    ("model FLOP/s", ("tflops_per_second",)),
    ("  of the GPU's peak in 16 bits", ("mfu_percent",)),
    ("energy of this machine", ("energy_kwh", "co2e_kg")),
)
"""Names of the rows on the screen, and the keys of `metrics.json` that they show."""
OPTIONAL = {"probe_accuracy", "energy_kwh", "mfu_percent", *(f"random_init_{name}" for name in EVIDENCE)}
"""Without a value these have no row: they are measured on request, or belong to the row above."""


def write_report(
    folder: Path,
    recipe: Recipe,
    metrics: Metrics,
    train: ImageDataset,
    curriculum: Curriculum,
    chosen: Mapping[str, Pairs | None] | None = None,
    patches: Callable[[int], int] | None = None,
) -> list[Path]:
    """Writes curves.png and views.png into the folder of a run; returns their paths.

    Args:
        chosen, patches: the views that are framed and the patch tokens, see `draw_views`.
    """
    title = f"{recipe.model.method} · {recipe.model.backbone} · {metrics['dataset']}"
    images, aspect = sample_images(train)
    columns = recipe.views.num_views if recipe.views.selection == "hard" else 6
    stages = stages_of(curriculum, metrics["steps"])
    views: dict[str, Any] = {"columns": columns, "aspect": aspect, "chosen": chosen, "patches": patches}
    return [
        draw_curves(metrics["history"], folder / "curves.png", title, stages, start_of(metrics)),
        draw_views(images, recipe.views, curriculum, folder / "views.png", **views),
    ]


def result_table(metrics: Metrics, baseline: Metrics | None = None) -> str:
    """The results of a run in a few lines; a missing value reads "not measured".

    Args:
        baseline: of `finished_baseline`; what it took to be as accurate then comes first.
    """
    start = f"  {start_of(metrics)}"
    lines, width = [], max(len(name) for name, _ in ROWS)
    if baseline is not None and (reached := reached_line(metrics, baseline)):
        lines.append(f"  {reached}")
    for name, keys in ROWS:
        values = [shown for key in keys if (shown := show(metrics, key)) is not None]
        if values or not OPTIONAL.intersection(keys):
            text = ", ".join(values) if len(values) == len(keys) else "not measured"
            lines.append(f"  {start if name == START else name:<{width}}  {text}".rstrip())
    return "\n".join(lines)
