"""From a source of weights and a dataset to an accuracy and the facts that belong to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from hf_essl.config import DataArguments
from hf_essl.data import image_count, load_images
from hf_essl.evaluation.backbone import check_resolution, find_backbone, load_backbone, run_recipe
from hf_essl.evaluation.fingerprint import fingerprint
from hf_essl.evaluation.protocols import PROTOCOLS, Task, draw, labelled


def evaluate_backbone(
    source: str,
    data: DataArguments,
    protocol: str = "knn",
    settings: dict[str, Any] | None = None,
    *,
    which: str = "student",
    backbone: str | None = None,
    resolution: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    seed: int = 0,
    mixed_precision: str | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Top-1 accuracy, in percent, of a trained backbone on a labelled dataset; call it on all processes.

    Args:
        source, which, backbone: as `load_backbone` takes them.
        data: the dataset. Its max_train_samples images are drawn at random; its image_size is not read.
        protocol: one of `PROTOCOLS`.
        settings: options of the protocol's own, such as {"k": 20}.
        resolution: to test at; by default the backbone's own.
        image_size: side of the decoded images; by default that of the backbone's run, and never below the resolution.
        batch_size: images a batch; by default 256, in fine-tuning 128.
        num_workers: processes that load images.
        seed: of the drawn training images, of their order and of their augmentation.
        mixed_precision: no, fp16 or bf16; by default as `accelerate launch` says.
        report: takes lines of text: what is evaluated, and how far it is. Called by the main process alone.

    Returns:
        `accuracy` and what it was reached with, as the command writes it to JSON.

    Raises:
        ValueError: in one line, for anything of these that cannot work.
    """
    start = time.perf_counter()
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; it is one of {', '.join(PROTOCOLS)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it is a number of images from 1 on, such as 256")
    folder = find_backbone(source)
    loaded = load_backbone(folder, which=which, backbone=backbone)
    loaded = loaded._replace(resolution=loaded.resolution if resolution is None else resolution)
    check_resolution(loaded)
    if image_size is None:
        image_size = max(run_recipe(folder).get("image_size", 0), loaded.resolution)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed_precision)
    images = load_images(replace(data, image_size=image_size, max_train_samples=None), accelerator.device)
    train, test = labelled(images, data.dataset)
    weights = fingerprint(loaded.backbone.state_dict())  # before fine-tuning
    task = Task(
        loaded,
        train,
        test,
        accelerator,
        indices=draw(image_count(train) or 0, data.max_train_samples, seed),
        batch_size=batch_size or PROTOCOLS[protocol].batch_size,
        num_workers=num_workers,
        seed=seed,
        report=report if accelerator.is_main_process else lambda line: None,
    )
    task.report(
        f"{source} ({which}) at {loaded.resolution} px on {train.name}: {task.train_images:,} training images, "
        f"{task.test_images:,} to evaluate on"
    )
    found = PROTOCOLS[protocol].run(task, **(settings or {}))
    return {
        "accuracy": found.pop("accuracy"),
        "protocol": protocol,
        **found,
        "source": source,
        "weights": str(folder),
        "which": which,
        "fingerprint": weights,
        "resolution": loaded.resolution,
        "image_size": image_size,
        "dataset": train.name,
        "train_images": task.train_images,
        "eval_images": task.test_images,
        "seed": seed,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "seconds": time.perf_counter() - start,
    }
