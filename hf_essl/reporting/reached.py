"""When a run was as accurate as the plain recipe at its end: cost and seconds until then."""

import numpy as np

from hf_essl.config.files import baseline_of
from hf_essl.config.packaged import find_recipe
from hf_essl.recipe import Recipe, load_recipe
from hf_essl.reporting.metrics import Metrics, read_metrics

SAME = ("method", "backbone", "dataset", "train_images", "eval_images", "resolution", "crop_pct")
"""What two runs must have in common for their accuracies to be comparable."""
NAMES = {"petaflops": "petaFLOPs", "train_seconds": "s"}


def finished_baseline(recipe: Recipe, metrics: Metrics) -> Metrics | None:
    """The results of the recipe's `baseline:` in its own output folder.

    None if it has none or has not run, and if its accuracy is not comparable.
    """
    try:
        path = baseline_of(find_recipe(recipe.source))
        found = {} if path is None else read_metrics(load_recipe(path).training.folder)
    except ValueError:
        return None
    is_comparable = all(found.get(key) == metrics.get(key) for key in SAME)
    return found if is_comparable and found.get("knn_accuracy") is not None else None


def reached_line(metrics: Metrics, baseline: Metrics) -> str | None:
    """What it took to be as accurate as the baseline at its end, and what the baseline took; None without a kNN.

    The accuracy is known at the evaluations only: the first one that is as high counts.
    """
    if metrics.get("knn_accuracy") is None:
        return None
    target, same_machine = baseline["knn_accuracy"], metrics.get("device") == baseline.get("device")
    goal = f"to the baseline's kNN accuracy, {target:.1f} %"
    step = _first_step(metrics, target)
    if step is None:
        return f"{goal}: not reached, {metrics['knn_accuracy']:.1f} % at the end"
    keys = ["petaflops", *(["train_seconds"] if same_machine else [])]
    parts = []
    for key in keys:
        ours, theirs = _at(metrics, key, step), baseline.get(key)
        if ours and theirs:
            parts.append(f"{ours:.3g} of {theirs:.3g} {NAMES[key]} ({theirs / ours:.2f} x less)")
    return f"{goal}: {', '.join(parts)}"


def _first_step(metrics: Metrics, target: float) -> int | None:
    """The step of the first evaluation that is as accurate; one before training does not count."""
    evaluations = [entry for entry in metrics["history"] if "eval_knn_accuracy" in entry and entry["step"] > 0]
    return next((entry["step"] for entry in evaluations if entry["eval_knn_accuracy"] >= target), None)


def _at(metrics: Metrics, key: str, step: int) -> float:
    """A cost after a number of steps, linear between the entries of the log."""
    logged = [(entry["step"], entry[key]) for entry in metrics["history"] if "loss" in entry and key in entry]
    known = [(0, 0.0), *logged]
    known = [*(pair for pair in known if pair[0] < metrics["steps"]), (metrics["steps"], metrics[key])]
    steps, costs = (np.array(values) for values in zip(*known, strict=True))
    return float(np.interp(step, steps, costs))
