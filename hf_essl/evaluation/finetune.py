"""Full fine-tuning: backbone and linear head, trained together on labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hf_essl.data import ImageDataset, collate, image_count
from hf_essl.evaluation.augment import CropAndFlip
from hf_essl.evaluation.features import check_classes, extract_features
from hf_essl.evaluation.linear_probe import zero_linear
from hf_essl.evaluation.metrics import Accuracy
from hf_essl.methods.distributed import broadcast_buffers, mean_over_processes
from hf_essl.schedules import CosineWarmup, CurveScheduler

LEARNING_RATES = {"sgd": 0.1, "adamw": 0.001}
WARMUP = 0.05  # share of the steps


def finetune(
    backbone: nn.Module,
    train: ImageDataset,
    test: ImageDataset,
    *,
    resolution: int,
    mean: Sequence[float],
    std: Sequence[float],
    epochs: int = 100,
    batch_size: int = 128,
    optimizer: str = "sgd",
    learning_rate: float | None = None,
    weight_decay: float = 1e-4,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: Callable[[str], None] | None = None,
) -> float:
    """Top-1 accuracy in percent, [0, 100], on the test images, of the backbone trained whole with a linear head.

    Random resized crops and flips; the learning rate rises over the first 5 % of the steps and falls by a cosine to 0;
    the head starts at zero. The backbone is trained in place, and the global random state is left alone but for
    dropout. With an accelerator of several processes each one takes its share of every batch; call it on all of them.

    Args:
        backbone: B x 3 x r x r to B x D, a timm model built with `num_classes=0`, not wrapped in DDP.
        train, test: labelled images.
        resolution: r, of the crops and of the test images.
        mean, std: of the normalisation, for each channel, of pixels in [0, 1].
        epochs: passes over the training images.
        batch_size: largest batch, over all processes; an epoch is split into equal batches of at most that, and the
            few images that are left over wait for another epoch.
        optimizer: sgd (momentum 0.9, Nesterov) or adamw.
        learning_rate: at its peak; by default 0.1 for sgd and 0.001 for adamw.
        weight_decay: on every parameter.
        seed: of the order of the images and of their augmentation.
        indices: the training images to take; by default all.
        num_workers: processes that load images.
        accelerator: device, processes and mixed precision; by default the device is the backbone's.
        progress: takes a line of text an epoch.

    Raises:
        ValueError: for images without labels, fewer images than processes, an unknown optimizer, an epoch or batch
            below 1, and a loss that is no number.
    """
    indices = range(image_count(train) or 0) if indices is None else indices
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    classes = _check(train, test, indices, epochs, batch_size, world)
    device = accelerator.device if accelerator else next(backbone.parameters()).device
    model = nn.Sequential(backbone, zero_linear(_width(backbone), classes)).to(device)
    steps = min(math.ceil(len(indices) / max(batch_size // world * world, world)), len(indices) // world)
    solver = _optimizer(model, optimizer, learning_rate, weight_decay)
    scheduler = CurveScheduler(solver, CosineWarmup(epochs * steps, WARMUP * epochs * steps))
    trained, solver = accelerator.prepare(model, solver) if accelerator else (model, solver)
    order, augment = torch.Generator().manual_seed(seed), CropAndFlip(resolution, mean, std, seed, rank)
    for epoch in range(epochs):
        batches = _shares(indices, steps, world, order)[rank]
        loader = DataLoader(train, batch_sampler=batches, num_workers=num_workers, collate_fn=collate, generator=order)
        model.train()
        losses = []
        for batch in loader:
            images, labels = augment(batch["image"].to(device)), batch["label"].to(device)
            losses.append(_step(trained, solver, images, labels, accelerator))
            scheduler.step()
        loss = mean_over_processes(torch.stack(losses).mean()).item()
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch + 1} is {loss}; lower learning_rate")
        if progress:
            progress(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}")
    broadcast_buffers(model)
    features, labels = extract_features(
        backbone,
        test,
        resolution=resolution,
        mean=mean,
        std=std,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
    )
    assert labels is not None, "checked above"
    with torch.inference_mode():
        predictions = model[1](features.to(device, torch.float32)).argmax(dim=1)
    return Accuracy().compute(predictions=predictions.cpu(), references=labels)["accuracy"]


def _check(
    train: ImageDataset, test: ImageDataset, indices: Sequence[int], epochs: int, batch_size: int, world: int
) -> int:
    """Refuses what cannot be trained on; returns the number of classes."""
    for name, images in (("training", train), ("test", test)):
        if images.labels is None:
            raise ValueError(f"the {name} images have no labels; fine-tuning needs them, name the label_column")
    if len(indices) < world:
        raise ValueError(
            f"{len(indices)} training images for {world} processes; each needs one, start fewer processes"
        )
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size are {epochs} and {batch_size}; both must be at least 1")
    assert train.labels is not None
    return check_classes("train", train.labels[torch.as_tensor(indices)])


def _width(backbone: nn.Module) -> int:
    """The size of its features: of some architectures, such as MobileNetV3, not `num_features`."""
    width = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise ValueError(f"{type(backbone).__name__} tells no num_features; give a timm model")
    return width


def _optimizer(model: nn.Module, name: str, learning_rate: float | None, weight_decay: float) -> torch.optim.Optimizer:
    if name not in LEARNING_RATES:
        raise ValueError(f"optimizer is {name!r}; it is one of {', '.join(LEARNING_RATES)}")
    rate = LEARNING_RATES[name] if learning_rate is None else learning_rate
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def _shares(indices: Sequence[int], steps: int, world: int, order: torch.Generator) -> list[list[list[int]]]:
    """The batches of an epoch for each process: W x steps x b positions, every one of them once at most."""
    share = len(indices) // (steps * world)
    drawn = torch.randperm(len(indices), generator=order)[: steps * world * share]
    return [
        [[indices[i] for i in batch] for batch in batches]
        for batches in drawn.view(steps, world, share).transpose(0, 1).tolist()
    ]


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    accelerator: Accelerator | None,
) -> Tensor:
    """One optimizer step; the mean loss of the batch, without gradient."""
    with accelerator.autocast() if accelerator else nullcontext():
        scores = model(images)
    loss = F.cross_entropy(scores.float(), labels)
    optimizer.zero_grad()
    if accelerator:
        accelerator.backward(loss)
    else:
        loss.backward()
    optimizer.step()
    return loss.detach()
