"""Features of a frozen backbone, extracted once and kept in host memory for every evaluation."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_essl.config.training import EVAL_CROP_PCT
from hf_essl.data import NO_LABEL, collate
from hf_essl.views.crops import center_boxes
from hf_essl.views.resample import resample

logger = logging.getLogger(__name__)

LARGE_BANK = 2e9
"""Bytes in float32 above which features are kept in float16: ImageNet's 1.28 M x 2048 then need 5.2 GB, not 10.5."""

Transform = Callable[[Tensor, Tensor], Tensor]
"""Canvases, uint8 B x 3 x S x S, and B aspect ratios on the host, to normalized float32 B x 3 x r x r."""


def extract_features(
    backbone: nn.Module,
    dataset: Any,
    *,
    resolution: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float = EVAL_CROP_PCT,
    batch_size: int = 256,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    dtype: torch.dtype | None = None,
    indices: Sequence[int] | None = None,
    transform: Transform | None = None,
    kept: list[int] | None = None,
    progress: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The backbone's features of every image of a dataset, in its order; unreadable images are skipped with a warning.

    With several processes, each extracts its share and all of them return all features: call it on all. The global
    random state and the modes of the modules do not change. There is never a second copy of the features.

    Args:
        backbone: B x 3 x r x r to B x D, not wrapped in DDP.
        dataset: map-style, as `hf_essl.data` makes them: canvases, uint8 3 x S x S, their aspect ratios, and labels.
        resolution: r, the side of the center crops in pixels.
        mean, std: per channel, for the normalization of pixels in [0, 1].
        crop_pct: side of the center crops, as a share of the image's short side; 1 is the whole center square.
        batch_size: images per batch and process.
        num_workers: processes that load images.
        accelerator: provides the device, several processes and mixed precision; without one, the backbone stays where
            it is.
        dtype: type of the returned features; by default float32 up to 2 GB (`LARGE_BANK`), float16 above.
        indices: use only the images with these indices, in this order.
        transform: makes the input of the backbone, such as augmented views; by default the center crops.
        kept: a list to extend by the index of each row's image; it lacks those of unreadable images.
        progress: the text of a progress bar in a terminal; by default there is none.

    Returns features, N x D, and labels, N, or None if no image has a label; both on the CPU.
    Raises ValueError for a dataset without a length or without images, for a backbone that does not return one vector
    per image, and for features beyond the range of dtype.
    """
    chosen = _chosen(dataset, indices)
    share = _share(chosen, accelerator)
    device = accelerator.device if accelerator else next((p.device for p in backbone.parameters()), "cpu")
    backbone.to(device)
    prepare = transform or center_crops(resolution, crop_pct, mean, std)
    own_stream = torch.Generator()  # without one the loader draws from the global generator
    loader = DataLoader(
        dataset, batch_size, sampler=share, num_workers=num_workers, collate_fn=collate, generator=own_stream
    )
    bank = None
    with _eval_mode(backbone):
        for number, batch in enumerate(loader if progress is None else tqdm(loader, desc=progress, disable=None)):
            features = _forward(backbone, prepare(batch["image"].to(device), batch["aspect"]), accelerator)
            facts = _facts(batch, share[number * batch_size : (number + 1) * batch_size])
            features, facts = _gather(features, facts, accelerator)
            if bank is None:
                bank = _Bank(len(chosen), features.shape[1], dtype)
            bank.add(features, facts)
    assert bank is not None, "there is at least one image"
    if kept is not None:
        kept += [chosen[row] for row in bank.readable_rows().tolist()]
    return bank.readable()


def _chosen(dataset: Any, indices: Sequence[int] | None) -> list[int]:
    if not hasattr(dataset, "__len__"):
        raise ValueError("the dataset is a stream without a length; pass its first samples, list(islice(dataset, N))")
    chosen = list(range(len(dataset)) if indices is None else indices)
    if not chosen:
        raise ValueError("there are no images to extract features of; check the split, or the indices")
    return chosen


def center_crops(resolution: int, crop_pct: float, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The images of an evaluation: the short side resized to `resolution` / `crop_pct`, then the center crop.

    The pixels are those of torchvision's `Resize` and `CenterCrop` of the original, up to what the canvas has lost.
    """

    def transform(images: Tensor, aspect: Tensor) -> Tensor:
        boxes = center_boxes(aspect, crop_pct, resolution)
        pixels = resample(images.contiguous(), boxes, torch.zeros(len(boxes), dtype=torch.bool), resolution)
        means, stds = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (mean, std))
        return pixels.sub_(means).div_(stds)

    return transform


def check_labeled(name: str, features: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless features are N x D, with N above 0, and labels N."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"{name} features have shape {tuple(features.shape)}; it must be N x D with N at least 1")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name} labels have shape {tuple(labels.shape)} for {len(features)} features; give one each")


def check_classes(name: str, labels: Tensor) -> Tensor:
    """The classes that occur, sorted. Raises ValueError for a label below 0."""
    if int(labels.min()) < 0:
        raise ValueError(f"{name} labels contain {int(labels.min())}; classes start at 0, remove unlabeled images")
    return labels.unique()


def class_targets(labels: Tensor, classes: Tensor) -> Tensor:
    """The position of each label among the classes; for an image without one -100, which `cross_entropy` ignores."""
    return torch.searchsorted(classes, labels).where(labels != NO_LABEL, -100)


def labeled_indices(dataset: Any) -> list[int] | None:
    """The images of a dataset that have a label; None, which means all, if all or none have one or nobody knows."""
    labels = dataset.labels if dataset.has_known_labels else None
    if labels is None or not (labels == NO_LABEL).any():
        return None
    return (labels != NO_LABEL).nonzero().flatten().tolist()


def check_same_size(features: Tensor, others: Tensor) -> None:
    """Raises ValueError for features of different D."""
    if features.shape[1] != others.shape[1]:
        sizes = f"{features.shape[1]} and {others.shape[1]}"
        raise ValueError(f"the features have {sizes} dimensions; extract both with one backbone")


def _share(chosen: list[int], accelerator: Accelerator | None) -> list[int]:
    """This process's images: rank, rank + W, rank + 2 W, ...; the first ones are repeated to make shares equal."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    total = -(-len(chosen) // world) * world
    return [chosen[i % len(chosen)] for i in range(rank, total, world)]


def _facts(batch: dict[str, Any], indices: list[int]) -> Tensor:
    """The label of each image, and 1 if it could be read or 0 if another image replaces it, B x 2."""
    unreadable = {one.index for one in batch.get("unreadable", ())}
    readable = torch.tensor([index not in unreadable for index in indices])
    return torch.stack([batch["label"].cpu(), readable.long()], dim=1)


def _gather(features: Tensor, facts: Tensor, accelerator: Accelerator | None) -> tuple[Tensor, Tensor]:
    """Features and facts of all processes' batches, in the order of the dataset, on the CPU."""
    if accelerator and accelerator.num_processes > 1:
        world, size = accelerator.num_processes, len(features)
        features, facts = (  # W B rows, process by process, to B W rows, image by image
            gathered.unflatten(0, (world, size)).transpose(0, 1).flatten(0, 1)
            for gathered in accelerator.gather((features.contiguous(), facts.to(features.device)))
        )
    return features.cpu(), facts.cpu()


@torch.no_grad()  # not inference mode: the features can take part in autograd
def _forward(backbone: nn.Module, images: Tensor, accelerator: Accelerator | None) -> Tensor:
    """B x 3 x r x r to float32 B x D."""
    with accelerator.autocast() if accelerator else nullcontext():
        features = backbone(images)
    if features.ndim != 2:
        raise ValueError(
            f"the backbone returns features of shape {tuple(features.shape)} instead of B x D; build it with "
            f"timm.create_model(name, num_classes=0)"
        )
    return features.float()


class _Bank:
    """The features of all batches, N x D, filled in place: concatenating batches would need twice the memory."""

    def __init__(self, count: int, size: int, dtype: torch.dtype | None):
        if dtype is None:
            dtype = torch.float16 if 4 * count * size > LARGE_BANK else torch.float32
        self.features = torch.empty(count, size, dtype=dtype)
        self.facts = torch.empty(count, 2, dtype=torch.long)
        self.filled = 0

    def add(self, features: Tensor, facts: Tensor) -> None:
        """Appends rows; those beyond N are the repeated images of `_share` and are dropped."""
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

    def readable_rows(self) -> Tensor:
        """The rows of the images that could be read."""
        return (self.facts[:, 1] == 1).nonzero().squeeze(1)

    def readable(self) -> tuple[Tensor, Tensor | None]:
        """Features and labels of the images that could be read, compacted in place."""
        kept = self.readable_rows()
        if len(kept) < len(self.facts):
            total = len(self.facts)
            logger.warning("skipped %d of %d images, which cannot be read", total - len(kept), total)
            for start in range(0, len(kept), 4096):
                rows = kept[start : start + 4096]  # never before their destination
                self.features[start : start + len(rows)] = self.features[rows]
        labels = self.facts[kept, 0]
        return self.features[: len(kept)], None if (labels == NO_LABEL).all() else labels


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; restores each submodule's own mode afterwards, because some may be frozen."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
