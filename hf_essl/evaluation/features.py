"""Features of a frozen backbone, extracted once and kept in host memory for every evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hf_essl.data import NO_LABEL, collate

logger = logging.getLogger(__name__)

LARGE_BANK = 2e9
"""Bytes in float32 above which features are kept in float16: ImageNet's 1.28 M x 2048 then take 5.2 GB, not 10.5."""


def extract_features(
    backbone: nn.Module,
    dataset: Any,
    *,
    resolution: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    max_samples: int | None = None,
    dtype: torch.dtype | None = None,
    indices: Sequence[int] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The backbone's features of every image of a dataset, in its order; unreadable ones are left out, with a warning.

    With an accelerator of several processes each one extracts every so-many-th image, and all of them return all
    features; call it on all of them. The global random state and the modes of the modules are left as they were.
    Besides the features this holds one batch: there is never a second copy of them.

    Args:
        backbone: B x 3 x r x r to B x D, not wrapped in DDP.
        dataset: map-style, of samples with a uint8 image, 3 x S x S, and maybe a label: what `hf_essl.data` gives.
        resolution: r, side in pixels that the images are resized to.
        mean, std: of the normalisation, for each channel, of pixels in [0, 1].
        batch_size: images a batch and process.
        device: where it runs, and the backbone goes; by default the accelerator's, else where the backbone is.
        num_workers: processes that load images.
        accelerator: for several processes and for its mixed precision.
        max_samples: take this many images, evenly spaced over the dataset; by default all.
        dtype: that the features are kept in; by default float32 up to 2 GB (`LARGE_BANK`), and float16 above.
        indices: take the images at these positions, in this order; instead of max_samples.
        transform: uint8 B x 3 x S x S on the device to the normalised float32 B x 3 x r x r that the backbone takes,
            such as augmented views; by default the images are resized to r.

    Returns:
        Features, N x D, and labels, N, or None where the dataset has none; both on the CPU.

    Raises:
        ValueError: for a dataset without a length, without images or with fewer than max_samples, for a backbone
            that gives no vector an image, and for features beyond the range of dtype.
    """
    positions = _positions(dataset, max_samples, indices)
    mine = _share(positions, accelerator)
    if device is None:
        device = accelerator.device if accelerator else next((p.device for p in backbone.parameters()), "cpu")
    backbone.to(device)
    prepare = transform or _Normalize(resolution, mean, std, device)
    bank = None
    with _eval_mode(backbone):
        for index, batch in enumerate(_loader(dataset, mine, batch_size, num_workers)):
            features = _forward(backbone, prepare(batch["image"].to(device)), accelerator)
            facts = _facts(batch, mine[index * batch_size : (index + 1) * batch_size])
            features, facts = _gather(features, facts, accelerator)
            if bank is None:
                bank = _Bank(len(positions), features.shape[1], dtype)
            bank.add(features, facts)
    assert bank is not None, "there is at least one image"
    return bank.readable()


def check_labelled(name: str, features: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless features are N x D, with N above 0, and labels N."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"{name} features have shape {tuple(features.shape)}; it must be N x D with N at least 1")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name} labels have shape {tuple(labels.shape)} for {len(features)} features; give one each")


def check_classes(name: str, labels: Tensor) -> int:
    """The number of classes, one more than the largest label. Raises ValueError for a label below 0."""
    if int(labels.min()) < 0:
        raise ValueError(f"{name} labels hold {int(labels.min())}; classes count from 0: leave out unlabelled images")
    return int(labels.max()) + 1


def check_same_size(features: Tensor, others: Tensor) -> None:
    """Raises ValueError for features of different D."""
    if features.shape[1] != others.shape[1]:
        sizes = f"{features.shape[1]} and {others.shape[1]}"
        raise ValueError(f"the features have {sizes} dimensions; extract both with one backbone")


def _positions(dataset: Any, max_samples: int | None, indices: Sequence[int] | None) -> list[int]:
    """Which samples to take: all, or `max_samples` evenly spaced, since folders and Hub splits are sorted by class."""
    if indices is not None:
        if max_samples is not None or not len(indices):
            raise ValueError(f"{len(indices)} indices with max_samples {max_samples}; give one index at least, alone")
        return list(indices)
    if not hasattr(dataset, "__len__"):
        raise ValueError("the dataset is a stream without a length; pass its first samples, list(islice(dataset, N))")
    total = len(dataset)
    if total == 0:
        raise ValueError("the dataset holds no images; check its split")
    if max_samples is None:
        return list(range(total))
    if not 1 <= max_samples <= total:
        raise ValueError(f"max_samples is {max_samples} with {total} images; it lies in [1, {total}], or drop it")
    return [i * total // max_samples for i in range(max_samples)]


def _share(positions: list[int], accelerator: Accelerator | None) -> list[int]:
    """This process's positions, every so-many-th: as many on each, the first ones once more at the end."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    total = -(-len(positions) // world) * world
    return [positions[i % len(positions)] for i in range(rank, total, world)]


def _loader(dataset: Any, positions: list[int], batch_size: int, num_workers: int) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=positions,
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator(),  # without one the loader draws from the global generator
    )


def _facts(batch: dict[str, Any], positions: list[int]) -> Tensor:
    """The label of each image and whether it is itself (1) or stands in for one that cannot be read (0), B x 2."""
    unreadable = {one.index for one in batch.get("unreadable", ())}
    readable = torch.tensor([position not in unreadable for position in positions])
    return torch.stack([batch["label"].cpu(), readable.long()], dim=1)


def _gather(features: Tensor, facts: Tensor, accelerator: Accelerator | None) -> tuple[Tensor, Tensor]:
    """Features and facts of all processes' batches, in the order of the positions, on the CPU."""
    if accelerator and accelerator.num_processes > 1:
        world, size = accelerator.num_processes, len(features)
        features, facts = (  # W B rows, one process after the other, to B W rows, one position after the other
            gathered.unflatten(0, (world, size)).transpose(0, 1).flatten(0, 1)
            for gathered in accelerator.gather((features.contiguous(), facts.to(features.device)))
        )
    return features.cpu(), facts.cpu()


@torch.no_grad()  # no inference mode: what is returned can take part in autograd
def _forward(backbone: nn.Module, images: Tensor, accelerator: Accelerator | None) -> Tensor:
    """B x 3 x r x r to float32 B x D."""
    with accelerator.autocast() if accelerator else nullcontext():
        features = backbone(images)
    _check_output(features)
    return features.float()


class _Bank:
    """The features of all batches in one tensor, filled as they come: to join them at the end would need it twice.

    Args:
        count: images, N.
        size: of a feature, D.
        dtype: None is float32, or float16 where that is larger than `LARGE_BANK`.
    """

    def __init__(self, count: int, size: int, dtype: torch.dtype | None):
        if dtype is None:
            dtype = torch.float16 if 4 * count * size > LARGE_BANK else torch.float32
        self.features = torch.empty(count, size, dtype=dtype)
        self.facts = torch.empty(count, 2, dtype=torch.long)
        self.filled = 0

    def add(self, features: Tensor, facts: Tensor) -> None:
        """The next rows, of which those beyond N are dropped: several processes repeat the first images at the end."""
        end = min(self.filled + len(features), len(self.features))
        features, facts = features[: end - self.filled], facts[: end - self.filled]
        largest = torch.finfo(self.features.dtype).max
        if (features.isfinite() & (features.abs() > largest)).any():
            raise ValueError(
                f"the features reach {features[features.isfinite()].abs().max():.4g}, above the {largest:.4g} of "
                f"{self.features.dtype}; pass dtype=torch.float32, or torch.bfloat16"
            )
        self.features[self.filled : end], self.facts[self.filled : end] = features, facts
        self.filled = end

    def readable(self) -> tuple[Tensor, Tensor | None]:
        """Features and labels of the images that could be read, moved together in place."""
        kept = (self.facts[:, 1] == 1).nonzero().squeeze(1)
        if len(kept) < len(self.facts):
            logger.warning(
                "left out %d of %d images, which cannot be read", len(self.facts) - len(kept), len(self.facts)
            )
            for start in range(0, len(kept), 4096):
                rows = kept[start : start + 4096]  # none lies before where it goes
                self.features[start : start + len(rows)] = self.features[rows]
        labels = self.facts[kept, 0]
        return self.features[: len(kept)], None if (self.facts[:, 0] == NO_LABEL).all() else labels


class _Normalize:
    """uint8 B x 3 x S x S to float32 B x 3 x r x r on the device: antialiased bilinear, mean 0 and deviation 1."""

    def __init__(self, resolution: int, mean: Sequence[float], std: Sequence[float], device: torch.device | str):
        self.size = (resolution, resolution)
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        images = images.float()  # before the resize, which rounds uint8
        images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        return (images / 255 - self.mean) / self.std


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule's own mode again, as parts of it may be frozen."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _check_output(features: Tensor) -> None:
    if features.ndim != 2:
        raise ValueError(
            f"the backbone gives features of shape {tuple(features.shape)} instead of B x D; build it with "
            f"timm.create_model(name, num_classes=0)"
        )
