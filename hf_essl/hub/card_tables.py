"""The tables of a model card, in Markdown: a row for what is known, none for what is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hf_essl.data.builtin import DATASETS
from hf_essl.hub.card_facts import Result
from hf_essl.hub.citation import method_title
from hf_essl.recipe import Recipe
from hf_essl.reporting.markdown import Row, table
from hf_essl.reporting.metrics import Metrics
from hf_essl.schedules import CURVES, Curriculum, warmup_fraction


def training_table(folder: Path, metrics: Metrics, recipe: Recipe) -> str:
    """What was trained, on what and for how long."""
    method, features = metrics["method"], json.loads((folder / "config.json").read_text()).get("num_features")
    start = f"timm's published weights of `{recipe.model.backbone}`" if recipe.model.pretrained else "random"
    whole = recipe.training.num_train_epochs
    epochs = show(metrics, "{:.4g}", "epochs")
    if epochs and recipe.training.max_steps > 0:
        epochs += f" (max_steps: {recipe.training.max_steps} sets the length, in place of {whole:g} epochs)"
    rows: list[Row] = [
        ("Method", method_title(method)),
        ("Backbone", f"`{metrics['backbone']}`"),
        ("Parameters", show(metrics, "{:,}", "parameters")),
        ("Features", f"{features} an image" if features else None),
        ("Initialisation", start),
        ("Data set", _dataset(metrics, recipe)),
        ("Terms of its images", _image_terms(metrics["dataset"])),
        ("Training images", show(metrics, "{:,}", "train_images")),
        (
            "Unreadable images",
            show(metrics, "{:,}", "unreadable_images") if metrics.get("unreadable_images") else None,
        ),
        ("Epochs", epochs),
        ("Optimizer steps", show(metrics, "{:,}", "steps")),
        ("Images a step", show(metrics, "{:,}", "images_per_step")),
        ("Optimizer", f"{_plain(recipe.training.optim)}, weight decay {recipe.training.weight_decay:g}"),
        ("Seed", str(recipe.training.seed)),
    ]
    return table(("what", "value"), rows)


def strategy_table(recipe: Recipe) -> str:
    """The paper's three strategies, which of them were on, and their schedules."""
    views, training = recipe.views, recipe.training
    warmup = f"the first {100 * warmup_fraction(training):.3g} % of the run"
    cycles = CURVES[training.lr_schedule].cycles_momentum
    momentum = f"{training.max_momentum:g} to {training.min_momentum:g} at the peak and back"
    fixed = training.momentum if _plain(training.optim) == "sgd" else training.adam_beta1
    magnitude = f"{views.min_magnitude:g} to {views.max_magnitude:g}, linear"
    rows: list[Row] = [
        (
            "F1-CLR: learning rate",
            _switch(training.lr_schedule == "f1_clr"),
            CURVES[training.lr_schedule].course.format(peak=training.learning_rate, warmup=warmup),
        ),
        (
            "F1-CLR: momentum",
            _switch(training.lr_schedule == "f1_clr"),
            momentum if cycles else f"{fixed:g} throughout",
        ),
        (
            "Super Progressive Learning: resolution",
            _switch(views.resolution_schedule == "super_progressive"),
            _resolutions(recipe, warmup),
        ),
        (
            "Super Progressive Learning: augmentation magnitude",
            _switch(views.min_magnitude != views.max_magnitude),
            magnitude if views.min_magnitude != views.max_magnitude else f"{views.max_magnitude:g} throughout",
        ),
        ("Hard Augment", _switch(views.selection == "hard"), _selection(recipe)),
    ]
    if views.extra_targets:
        rows.append(("Extra targets", "on", "small views that were not chosen are targets as well"))
    return table(("strategy", "on or off", "schedule"), rows)


def result_table(found: Sequence[Result]) -> str:
    """What was measured of the backbone's quality, and how."""
    return table(("metric", "value", "how it was evaluated"), [(r.name, r.shown, r.how) for r in found])


def cost_table(metrics: Metrics, recipe: Recipe) -> str:
    """What the run cost, and what it saved over its own plain recipe."""
    parts = metrics.get("petaflops_by_part") or {}
    split = ", ".join(f"{name} {100 * value / sum(parts.values()):.1f} %" for name, value in parts.items() if value)
    energy = "codecarbon, evaluation and saving included"
    plain = "over the plain recipe: constant resolution, two views, equal epochs"
    rows: list[Row] = [
        ("Operations, counted", show(metrics, "{:.4g} petaFLOPs", "petaflops"), split),
        (
            "Operations, paper's convention",
            show(metrics, "{:.4g} petaFLOPs", "petaflops_paper_convention"),
            "backbone alone, a backward pass as one forward pass",
        ),
        (
            "Training time",
            show(metrics, "{:.0f} s", "train_seconds"),
            show(metrics, "{:.0f} images/s; without evaluation and saving", "images_per_second"),
        ),
        ("Energy", show(metrics, "{:.3g} kWh", "energy_kwh"), energy),
        ("Emissions", show(metrics, "{:.3g} kgCO2e", "co2e_kg"), energy),
        ("Speed-up, predicted", show(metrics, "{:.2f} x", "predicted_speedup"), f"from counted operations, {plain}"),
        (
            "Speed-up, predicted, paper's convention",
            show(metrics, "{:.2f} x", "predicted_speedup_paper_convention"),
            f"in that convention, {plain}",
        ),
        (
            "Speed-up, measured",
            show(metrics, "{:.2f} x", "measured_speedup"),
            "in wall-clock, over steps of the plain recipe, timed on the same machine after the run",
        ),
    ]
    return table(("what", "value", "how it was counted"), rows)


def baseline_table(metrics: Metrics, baseline: Metrics) -> str:
    """This run beside a finished baseline: time on equal hardware alone, accuracy on equal images alone."""
    alike = all(metrics.get(key) == baseline.get(key) for key in ("device", "processes"))
    judged_alike = metrics.get("eval_images") == baseline.get("eval_images")
    timed = (("Training time", "train_seconds", "{:.0f} s"),) if alike else ()
    judged = (("kNN accuracy", "knn_accuracy", "{:.1f} %"),) if judged_alike else ()
    rows: list[Row] = []
    for name, key, form in (
        *judged,
        ("Epochs", "epochs", "{:.4g}"),
        ("Operations, counted", "petaflops", "{:.4g} petaFLOPs"),
        ("Operations, paper's convention", "petaflops_paper_convention", "{:.4g} petaFLOPs"),
        *timed,
    ):
        ours, theirs = metrics.get(key), baseline.get(key)
        costs = key not in ("knn_accuracy", "epochs")
        ratio = (f"{theirs / ours:.2f} x" if ours and theirs else None) if costs else ""
        rows.append((name, show(metrics, form, key), show(baseline, form, key), ratio))
    return table(("what", "this run", baseline_name(baseline), "speed-up"), rows)


def machine_table(metrics: Metrics, recipe: Recipe) -> str:
    """Hardware and versions."""
    training = recipe.training
    versions = ", ".join(f"{name} {number}" for name, number in (metrics.get("versions") or {}).items())
    rows: list[Row] = [
        ("Hardware", metrics.get("device")),
        ("Processes", show(metrics, "{}", "processes")),
        ("Precision", "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"),
        ("Versions", versions or None),
    ]
    return table(("what", "value"), rows)


def baseline_name(baseline: Metrics) -> str:
    return baseline.get("run") or f"{baseline['method']} on {baseline['backbone']}"


def show(metrics: Metrics, form: str, key: str) -> str | None:
    """A metric in its form; None where it was not measured."""
    value = metrics.get(key)
    return None if value is None else form.format(value)


def _dataset(metrics: Metrics, recipe: Recipe) -> str:
    config = f", configuration {recipe.data.dataset_config}" if recipe.data.dataset_config else ""
    return f"{metrics['dataset']}{config}, split {recipe.data.train_split}"


def _resolutions(recipe: Recipe, warmup: str) -> str:
    views = recipe.views
    if views.resolution_schedule == "constant":
        return f"{views.resolution} px throughout"
    stages = Curriculum.from_args(views, recipe.training).resolution.stages
    start = f"{views.resolution} px in {warmup}, then " if views.resolution_schedule == "super_progressive" else ""
    return (
        f"{start}{views.min_resolution} to {views.resolution} px in steps of {views.resolution_step} px, "
        f"{len(stages)} stages of equal length"
    )


def _selection(recipe: Recipe) -> str:
    views = recipe.views
    if views.selection == "none":
        return "two views, both train"
    if views.selection == "random":
        return f"two of m = {views.num_views} views at random"
    score = {"cosine": "lowest cosine", "loss": "highest loss"}[views.selection_score]
    return f"the pair of {score} of m = {views.num_views} views, compared at r_sel = {views.selection_resolution} px"


def _switch(is_on: bool) -> str:
    return "on" if is_on else "off"


def _plain(optim) -> str:
    return str(getattr(optim, "value", optim))


def _image_terms(dataset: str) -> str:
    known = DATASETS.get(dataset)
    return known.terms if known else "the run did not record their license"
