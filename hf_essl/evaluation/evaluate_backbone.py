"""Evaluates a trained backbone on a labeled dataset."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import Accelerator

from hf_essl.config import DataArguments
from hf_essl.config.training import EVAL_CROP_PCT
from hf_essl.data import ImageDataset, Images, image_count, load_images
from hf_essl.evaluation.backbone import LoadedBackbone, data_of_run, find_backbone, load_backbone, run_recipe
from hf_essl.evaluation.features import labeled_indices
from hf_essl.evaluation.protocols import PROTOCOLS, make_settings
from hf_essl.evaluation.task import Task
from hf_essl.methods.backbone import fingerprint
from hf_essl.views.crops import describe_center_crop


def evaluate_backbone(
    source: str,
    data: DataArguments,
    protocol: str = "knn",
    settings: dict[str, Any] | None = None,
    *,
    which: str = "student",
    backbone: str | None = None,
    resolution: int | None = None,
    crop_pct: float | None = None,
    pool: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    seed: int = 0,
    mixed_precision: str | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Top-1 accuracy, in percent, of a trained backbone on a labeled dataset; call it on all processes.

    Args:
        source, which, backbone, resolution, crop_pct, pool: see `load_backbone`.
        data: the dataset. Its max_train_samples images are chosen at random; its image_size is ignored.
        protocol: one of `PROTOCOLS`.
        settings: of the protocol, such as {"k": 20}.
        image_size: side of the decoded images; by default that of the backbone's run, but at least the resolution, and
            twice the resolution without a run.
        batch_size: images per batch; by default that of the protocol.
        num_workers: processes that load images.
        seed: of the choice, order and augmentation of the training images.
        mixed_precision: no, fp16 or bf16; by default as configured for `accelerate launch`.
        report: prints what is evaluated, and the progress. Only the main process calls it.

    Returns `accuracy`, the protocol's settings, and facts about weights and data; the command writes them as JSON.
    Raises ValueError in one line, for arguments that cannot work.
    """
    start = time.perf_counter()
    options = make_settings(protocol, settings or {})
    data.check()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it is a number of images, such as 256")
    folder = find_backbone(source)
    loaded = load_backbone(folder, which=which, backbone=backbone, resolution=resolution, crop_pct=crop_pct, pool=pool)
    recipe = run_recipe(folder)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed_precision)
    weights = fingerprint(loaded.network.state_dict())  # before fine-tuning changes them
    task = _task(
        loaded,
        data_of_run(data, recipe, loaded.resolution, image_size),
        accelerator,
        batch_size=batch_size or PROTOCOLS[protocol].batch_size,
        num_workers=num_workers,
        seed=seed,
        report=report if accelerator.is_main_process else lambda line: None,
    )
    _announce(task, f"{source} ({which})", is_own=crop_pct is None and "eval_crop_pct" not in recipe)
    found = PROTOCOLS[protocol].run(task, options)
    return {
        "accuracy": found.pop("accuracy"),
        "title": PROTOCOLS[protocol].title,
        "protocol": protocol,
        **asdict(options),
        **found,
        **{"source": source, "weights": str(folder), "which": which, "fingerprint": weights},
        **_facts(task),
        "seconds": time.perf_counter() - start,
    }


def _task(loaded: LoadedBackbone, data: DataArguments, accelerator: Accelerator, seed: int, **options: Any) -> Task:
    """The backbone with the images that it is evaluated on."""
    images = load_images(replace(data, max_train_samples=None), accelerator.device)
    train, test = labeled_splits(images, data.dataset)
    indices = sample_indices(image_count(train) or 0, data.max_train_samples, seed, labeled_indices(train))
    test_indices = labeled_indices(test)
    return Task(loaded, train, test, accelerator, indices=indices, test_indices=test_indices, seed=seed, **options)


def _announce(task: Task, source: str, is_own: bool) -> None:
    """What is evaluated; `is_own` is a crop that neither the command nor a recipe names."""
    loaded = task.loaded
    task.report(
        f"{source} at {describe_center_crop(loaded.resolution, loaded.crop_pct)}, on {task.train.name}: "
        f"{task.train_images:,} training images, {task.test_images:,} to evaluate on"
    )
    if is_own and loaded.crop_pct != EVAL_CROP_PCT:
        task.report(
            f"this is the crop that it was made with; new runs are evaluated with --crop_pct {EVAL_CROP_PCT:g}"
        )


def _facts(task: Task) -> dict[str, Any]:
    """What was evaluated, on which images and where."""
    return {
        "resolution": task.loaded.resolution,
        "crop_pct": task.loaded.crop_pct,
        "pool": task.loaded.pool,
        "image_size": task.train.image_size,
        "dataset": task.train.name,
        "train_images": task.train_images,
        "eval_images": task.test_images,
        "seed": task.seed,
        "processes": task.accelerator.num_processes,
        "device": task.accelerator.device.type,
    }


def labeled_splits(images: Images, name: str) -> tuple[ImageDataset, ImageDataset]:
    """The labeled training and test images of a dataset. Raises ValueError if one is missing."""
    if images.bank is None or images.bank.labels is None:
        raise ValueError(f"dataset is {name}, whose training images have no labels; set --label_column")
    if images.eval is None or images.eval.labels is None:
        raise ValueError(
            f"dataset is {name}, which has no labeled evaluation images; name their split with --eval_split, or hold "
            f"some out with --eval_holdout 0.1"
        )
    return images.bank, images.eval


def sample_indices(total: int, count: int | None, seed: int = 0, among: list[int] | None = None) -> list[int] | None:
    """`count` of `total` indices, or of those in `among`, sorted; if there are no more, all: None or `among`.

    They are random because stored images may be sorted by class, or cycle through the classes.
    """
    total = total if among is None else len(among)
    if count is None or count >= total:
        return among
    chosen = sorted(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].tolist())
    return chosen if among is None else [among[index] for index in chosen]
