"""Full fine-tuning: backbone and linear head, trained together on labeled images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader

from hf_essl.config.fields import Count, Positive, option
from hf_essl.data import collate
from hf_essl.evaluation.features import check_classes, class_targets
from hf_essl.evaluation.linear_probe import zero_linear
from hf_essl.evaluation.metrics import Accuracy
from hf_essl.evaluation.task import Protocol, Task
from hf_essl.methods.backbone import feature_size
from hf_essl.methods.distributed import broadcast_buffers, mean_over_processes
from hf_essl.schedules import CosineWarmup, CurveScheduler

LEARNING_RATES = {"sgd": 0.1, "adamw": 0.001}
WEIGHT_DECAY = 1e-4  # of every parameter
WARMUP = 0.05  # share of the steps


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning."""

    epochs: Count = option("Passes over the training images.", 100)
    learning_rate: Positive | None = option(
        f"Peak learning rate; by default {', '.join(f'{rate} for {name}' for name, rate in LEARNING_RATES.items())}."
    )
    optimizer: Literal["sgd", "adamw"] = option("sgd (momentum 0.9, Nesterov) or adamw.", "sgd")


def evaluate_finetune(task: Task, settings: FinetuneSettings) -> dict[str, Any]:
    """Trains backbone and linear head on the training images and tests them; call it on all processes.

    Random resized crops and flips; the learning rate rises over the first 5 % of the steps and decays to 0 with a
    cosine; the head starts at zero. The backbone is trained in place. The global random state does not change, except
    by dropout. An epoch is split into equal batches of at most `task.batch_size` over all processes; the few images
    left over are skipped in this epoch.

    Raises ValueError for fewer images than processes, a backbone that does not return one vector per image, and a loss
    that is not finite.
    """
    world, device = task.accelerator.num_processes, task.accelerator.device
    indices = range(task.train_images) if task.indices is None else task.indices
    if len(indices) < world:
        raise ValueError(f"{len(indices)} training images for {world} processes; start fewer processes")
    assert task.train.labels is not None, "the images of a task have labels"
    classes = check_classes("train", task.train.labels[torch.as_tensor(indices)])  # C
    backbone = task.loaded.backbone
    model = nn.Sequential(backbone, zero_linear(feature_size(backbone), len(classes))).to(device)
    rate = settings.learning_rate or LEARNING_RATES[settings.optimizer]
    _train(model, _optimizer(model, settings.optimizer, rate), settings.epochs, task, indices, classes)
    broadcast_buffers(model)
    features, labels = task.test_features()
    with torch.no_grad():
        predictions = classes[model[1](features.to(device, torch.float32)).argmax(dim=1).cpu()]
    found = Accuracy().compute(predictions=predictions, references=labels)
    return {"accuracy": found["accuracy"], "learning_rate": rate}


FINETUNE = Protocol(
    "Fine-tuned accuracy", "backbone trained with a classifier", evaluate_finetune, FinetuneSettings, batch_size=128
)


def _optimizer(model: nn.Module, name: str, learning_rate: float) -> Optimizer:
    if name == "adamw":
        return AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    return SGD(model.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)


def _shares(indices: Sequence[int], steps: int, world: int, order: torch.Generator) -> list[list[list[int]]]:
    """The batches of an epoch for each process: W x steps x b images, none of them twice."""
    share = len(indices) // (steps * world)
    sampled = torch.randperm(len(indices), generator=order)[: steps * world * share]
    return [
        [[indices[i] for i in batch] for batch in batches]
        for batches in sampled.view(steps, world, share).transpose(0, 1).tolist()
    ]


def _train(
    model: nn.Module, optimizer: Optimizer, epochs: int, task: Task, indices: Sequence[int], classes: Tensor
) -> None:
    accelerator, device = task.accelerator, task.accelerator.device
    rank, world = accelerator.process_index, accelerator.num_processes
    steps = min(math.ceil(len(indices) / max(task.batch_size // world * world, world)), len(indices) // world)
    scheduler = CurveScheduler(optimizer, CosineWarmup(epochs * steps, WARMUP * epochs * steps))
    trained, optimizer = accelerator.prepare(model, optimizer)
    order, augment = torch.Generator().manual_seed(task.seed), task.augmentation()
    options: dict[str, Any] = {"num_workers": task.num_workers, "collate_fn": collate, "generator": order}
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for batch in DataLoader(task.train, batch_sampler=_shares(indices, steps, world, order)[rank], **options):
            images = augment(batch["image"].to(device), batch["aspect"])
            labels = class_targets(batch["label"], classes).to(device)
            with accelerator.autocast():
                scores = trained(images)
            loss = F.cross_entropy(scores.float(), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        mean = mean_over_processes(torch.stack(losses).mean()).item()
        if not math.isfinite(mean):
            raise ValueError(f"the loss of epoch {epoch} is {mean}; lower learning_rate")
        task.report(f"epoch {epoch}/{epochs}  loss {mean:.4f}")
