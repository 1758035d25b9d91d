"""The sections of a model card in Markdown. Tables have a row for everything known, and none for the rest."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_essl.common import markdown, table
from hf_essl.config.redact import without_paths
from hf_essl.config.resume import Change
from hf_essl.data.builtin import DATASETS
from hf_essl.evaluation.protocols import PROTOCOLS
from hf_essl.hub.card_facts import TOKENS, Result, strategies
from hf_essl.methods import METHODS, sources
from hf_essl.methods.sources import read_config
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import Metrics, show
from hf_essl.schedules import CURVES, Curriculum, warmup_fraction

SMALL_DATASET = 100_000  # training images below which the card calls a dataset small; ImageNet has 1.28 million

PAPER = r"""@inproceedings{kocyigit2023accelerating,
  title     = {Accelerating Self-Supervised Learning via Efficient Training Strategies},
  author    = {Ko{\c{c}}yi{\u{g}}it, Mustafa Taha and Hospedales, Timothy M. and Bilen, Hakan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  year      = {2023}
}"""
IMPROVING = ("knn_accuracy", "retrieval")  # a card says so if training did not raise them
FRAMED = "; framed are the two views that Hard Augment chooses before and after training"
BLOCKS = {  # how to load a backbone, by the first line of the block
    block.partition(":")[0]: block
    for block in re.split(r"\n\n(?=With )", Path(__file__).with_name("card_loading.md").read_text("utf-8").strip())
}
LOADING = {  # the blocks for the library of a backbone
    "timm": ("With timm", "With transformers", "With hf_essl"),
    "transformers": ("With transformers' AutoModel", "With hf_essl"),
    "torchvision": ("With hf_essl",),
    "module": ("With hf_essl and your network",),
}
SCORES = {
    "cosine": "lowest cosine similarity",
    "projection_cosine": "lowest cosine similarity of the projections",
    "loss": "highest loss",
}
TITLES = {
    "knn_accuracy": PROTOCOLS["knn"].title,
    "retrieval": "View retrieval",
    "epochs": "Epochs",
    "petaflops": "Operations, counted",
    "petaflops_paper_convention": "Operations, paper's convention",
    "train_seconds": "Training time",
    "energy_kwh": "Energy",
    "co2e_kg": "Emissions",
    "predicted_speedup": "Speed-up, predicted",
    "predicted_speedup_paper_convention": "Speed-up, predicted, paper's convention",
    "measured_speedup": "Speed-up, measured",
}
"""How the tables of cost name the values of metrics.json."""


def sections(
    folder: Path, metrics: Metrics, recipe: Recipe, found: Sequence[Result], baseline: Metrics | None
) -> dict[str, Any]:
    """The values of the card's template by name: tables, and what its sentences depend on."""
    name, dataset = metrics["method"], DATASETS.get(recipe.data.dataset)
    recipe = replace(recipe, changes=tuple(Change(**change) for change in metrics.get("changes", ())))
    method, citation = (METHODS[name].title, METHODS[name].citation) if name in METHODS else (name, "")
    *others, last = [title for title, is_used in strategies(recipe).items() if is_used] or ["the plain recipe"]
    local = is_local(metrics)
    return {
        "metrics": {**metrics, "dataset": markdown(metrics["dataset"])},
        "recipe": recipe,
        "method": method,
        "images": _images(metrics),
        "is_local": local,
        "library": {"module": "its author"}.get(library_of(folder), library_of(folder)),
        "repeat": _repeat(metrics, local),
        "framed": FRAMED if recipe.views.selection == "hard" else "",
        "terms": dataset and dataset.terms,
        "used": f"{', '.join(others)} and {last}" if others else last,
        "training": _training(method, folder, metrics, recipe),
        "strategies": _strategies(recipe),
        "results": table(("metric", "value", "evaluation"), [(r.name, r.shown, r.how) for r in found]),
        "cost": _cost(metrics),
        "baseline": baseline and _comparison(metrics, baseline),
        "baseline_name": baseline and _run_name(baseline),
        "machine": _machine(metrics, recipe),
        "recipe_yaml": recipe.redacted().to_yaml().strip(),
        "is_small": (metrics.get("train_images") or SMALL_DATASET) < SMALL_DATASET,
        "caveat": dataset and dataset.caveat,
        "judged": sorted({markdown(result.dataset) for result in found if result.dataset}),
        "is_no_better": [TITLES[key].replace("V", "v") for key in IMPROVING if _is_no_better(metrics, key)],
        "citations": f"{PAPER}\n\n{citation}".strip(),
    }


def library_of(folder: Path) -> str:
    """The library of an exported backbone, a key of `LOADING`."""
    return sources.library_of(read_config(folder))


def loading(folder: Path, repo_id: str | None) -> str:
    """Code that loads the backbone: from the Hub, or without `repo_id` from the folder next to it."""
    config = read_config(folder)
    text = "\n\n".join(BLOCKS[name] for name in LOADING[library_of(folder)])
    code = text.format(
        timm=f"hf-hub:{repo_id}" if repo_id else f"local-dir:{folder.name}",
        path=repo_id or folder.name,
        width=config.get("num_features", "D"),
        architecture=config.get("architecture"),
        interpolate=", interpolate_pos_encoding=True" if config.get("patch_size") else "",
    )
    return code if repo_id else f"Run the code in the folder that contains `{folder.name}/` and an image.\n\n{code}"


def _training(method: str, folder: Path, metrics: Metrics, recipe: Recipe) -> str:
    """What was trained, on what and for how long."""
    training, dataset = recipe.training, DATASETS.get(recipe.data.dataset)
    features = read_config(folder).get("num_features")
    config = f", configuration {recipe.data.dataset_config}" if recipe.data.dataset_config else ""
    published = "" if is_local(metrics) else f"{config}, split {recipe.data.train_split}"
    epochs = show(metrics, "epochs")
    if epochs and training.max_steps > 0:
        epochs += f" (set by max_steps: {training.max_steps}; the recipe has {training.num_train_epochs:g} epochs)"
    rows: list[tuple[str, str | None]] = [
        ("Method", method),
        *[(name.capitalize(), f"`{value}`") for name, value in _networks(recipe).items()],
        ("Backbone", f"`{metrics['backbone']}`"),
        ("Parameters", show(metrics, "parameters")),
        ("Features", f"{features} per image" if features else None),
        ("Initialization", "published weights" if recipe.model.pretrained else "random"),
        ("Dataset", markdown(metrics["dataset"]) + published),
        ("Terms of the images", dataset.terms if dataset else "the run did not record their license"),
        ("Training images", show(metrics, "train_images")),
        ("Image canvas", metrics.get("canvas")),
        ("Unreadable images", show(metrics, "unreadable_images") if metrics.get("unreadable_images") else None),
        ("Epochs", epochs),
        ("Optimizer steps", show(metrics, "steps")),
        ("Images per step", show(metrics, "images_per_step")),
        ("Optimizer", _optimizer(recipe)),
        ("Seed", str(training.seed)),
        ("Changed on resume", "; ".join(str(change) for change in recipe.changes) or None),
    ]
    return table(("what", "value"), rows)


def _networks(recipe: Recipe) -> dict[str, str]:
    """The further networks of the method, such as a teacher to distill, by the argument that names them."""
    method, shown = METHODS.get(recipe.model.method), without_paths(recipe.model.method_args)
    return {name: shown[name] for name in (method.network_args if method else ()) if name in shown}


def is_local(metrics: Metrics) -> bool:
    """Whether the dataset has no public name: it is a folder, a file or an object, and not a built-in or Hub id."""
    return metrics["dataset"] not in DATASETS and metrics["dataset"].count("/") != 1


def _images(metrics: Metrics) -> str:
    """The training images in a sentence, such as "the 200 images of photos"."""
    count, name = show(metrics, "train_images"), markdown(metrics["dataset"])
    return f"the {count} images of {name}" if count and is_local(metrics) else name


def _repeat(metrics: Metrics, local: bool) -> str:
    """The command that repeats the run with the card's recipe."""
    processes = metrics.get("processes") or 1
    start = "hf-essl" if processes == 1 else f"accelerate launch --num_processes {processes} -m hf_essl"
    return f"{start} pretrain recipe.yaml" + (" --dataset path/to/images" if local else "")


def _is_no_better(metrics: Metrics, key: str) -> bool:
    end, start = metrics.get(key), metrics.get(f"random_init_{key}")
    return end is not None and start is not None and end <= start


def _strategies(recipe: Recipe) -> str:
    """The paper's three strategies, whether the run used them, and their schedules."""
    views, training = recipe.views, recipe.training
    (f1_clr, cycles), (progressive, grows), (hard_augment, selects), *_ = strategies(recipe).items()
    curve, strengthens = CURVES[training.lr_schedule], views.min_magnitude != views.max_magnitude
    warmup = f"the first {100 * warmup_fraction(training):.3g} % of the run"
    fixed = training.constant_momentum
    cycle = f"from {training.max_momentum:g} to {training.min_momentum:g} at the peak and back"
    magnitude = f"{views.max_magnitude:g} throughout"
    if strengthens:
        magnitude = f"{views.min_magnitude:g} to {views.max_magnitude:g}, linear"
    rows = [
        (f"{f1_clr}: learning rate", cycles, curve.course.format(peak=training.learning_rate, warmup=warmup)),
        (f"{f1_clr}: momentum", cycles, cycle if curve.cycles_momentum else f"{fixed:g} throughout"),
        (f"{progressive}: resolution", grows, _resolutions(recipe, warmup)),
        (f"{progressive}: augmentation magnitude", strengthens, magnitude),
        (hard_augment, selects, _selection(recipe)),
    ]
    if views.drops_tokens:
        rows.append((f"{TOKENS}: share of patch tokens", views.min_tokens < 1, _tokens(recipe)))
    if views.extra_targets:
        rows.append(("Extra targets", True, "the small views that were not chosen are targets too"))
    if views.local_views:
        rows.append(("Multi-crop", True, _local_views(recipe)))
    return table(("strategy", "used", "schedule"), [(name, "yes" if on else "no", how) for name, on, how in rows])


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


def _tokens(recipe: Recipe) -> str:
    """What the student sees of a view's patch tokens; evaluation sees all."""
    views = recipe.views
    shares, stages = f"{views.min_tokens:.3g} of all throughout", f"{views.token_stages} stages of equal length"
    if views.min_tokens < views.max_tokens:
        shares = f"{views.min_tokens:.3g} to {views.max_tokens:.3g} of all, {stages}"
    teacher = f"; the teacher sees {views.teacher_tokens:.3g} of all" if views.teacher_tokens < 1 else ""
    return f"{shares}{teacher}; the others are dropped, except in evaluations"


def _local_views(recipe: Recipe) -> str:
    views = recipe.views
    smallest, largest = views.local_size(min(views.stages)), views.local_resolution
    size = f"{largest} px" if smallest == largest else f"{smallest} to {largest} px with the resolution"
    low, high = views.local_scale
    return f"{views.local_views} local views for the student, {size}, {low:g} to {high:g} of the image's area"


def _selection(recipe: Recipe) -> str:
    views = recipe.views
    if views.selection == "none":
        return "two views, both used for training"
    if views.selection == "random":
        return f"two of {views.num_views} views (m), chosen at random"
    score = SCORES[views.selection_score]
    tokens = f" with {views.selection_tokens:.3g} of the patch tokens" if views.selection_tokens < 1 else ""
    pair = f"the pair with the {score} of {views.num_views} views (m)"
    return f"{pair}, compared at {views.selection_resolution} px (r_sel){tokens}"


def _cost(metrics: Metrics) -> str:
    """What the run cost, and what it saved over its own plain recipe."""
    parts, rate = metrics.get("petaflops_by_part") or {}, show(metrics, "images_per_second")
    total, energy = sum(parts.values()), "measured by codecarbon, including evaluation and saving"
    plain = "relative to the plain recipe: constant resolution, two views, equal epochs"
    details = {
        "petaflops": ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in parts.items() if value),
        "petaflops_paper_convention": "backbone only; a backward pass counts as one forward pass",
        "train_seconds": rate and f"{rate}; without evaluation and saving",
        "energy_kwh": energy,
        "co2e_kg": energy,
        "predicted_speedup": f"from counted operations, {plain}",
        "predicted_speedup_paper_convention": f"in the paper's convention, {plain}",
        "measured_speedup": "in wall-clock time, relative to steps of the plain recipe on the same machine",
    }
    return table(
        ("what", "value", "details"), [(TITLES[key], show(metrics, key), how) for key, how in details.items()]
    )


def _comparison(metrics: Metrics, baseline: Metrics) -> str:
    """This run and a baseline: times only if the hardware is the same, accuracies only if the images are."""
    same_images = all(metrics.get(key) == baseline.get(key) for key in ("eval_images", "crop_pct"))
    same_machine = all(metrics.get(key) == baseline.get(key) for key in ("device", "processes"))
    costs = ["petaflops", "petaflops_paper_convention", *(["train_seconds"] if same_machine else [])]
    rows = []
    for key in [*(["knn_accuracy"] if same_images else []), "epochs", *costs]:
        ours, theirs = metrics.get(key), baseline.get(key)
        ratio = f"{theirs / ours:.2f} x" if key in costs and ours and theirs else ""
        rows.append((TITLES[key], show(metrics, key), show(baseline, key), ratio))
    return table(("what", "this run", _run_name(baseline), "speed-up"), rows)


def _machine(metrics: Metrics, recipe: Recipe) -> str:
    training = recipe.training
    versions = ", ".join(f"{name} {number}" for name, number in (metrics.get("versions") or {}).items())
    rows: list[tuple[str, str | None]] = [
        ("Hardware", metrics.get("device")),
        ("Processes", show(metrics, "processes")),
        ("Precision", "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"),
        ("Versions", versions or None),
    ]
    return table(("what", "value"), rows)


def _run_name(metrics: Metrics) -> str:
    return metrics.get("run") or f"{metrics['method']} on {metrics['backbone']}"


def _optimizer(recipe: Recipe) -> str:
    training = recipe.training
    name = getattr(training.optim, "value", training.optim)
    excluded = "" if training.decay_norm_and_bias else " (not on norms and biases)"
    end = training.weight_decay_end
    course = f"{training.weight_decay:g}" + ("" if end is None else f" to {end:g} along a cosine")
    return f"{name}, weight decay {course}{excluded}"
