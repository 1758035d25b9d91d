"""Batches on their way to the device: workers that stay, pinned memory, a copy beside the step that is running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_essl.data.dataset import ImageDataset, collate
from hf_essl.data.jpeg import EncodedImages, collate_encoded, decode_batch, require_gpu_decoder

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

    from hf_essl.arguments import DataArguments, SSLTrainingArguments


class Feed:
    """What a loader reads, and how its batches come to the device: as uint8 images, N x 3 x S x S.

    On a GPU the copy of a pinned batch has a stream of its own: it does not wait for the step before, which the device
    is still busy with, and what is given to the device later waits for the copy alone.

    Args:
        images: a dataset of decoded images.
    """

    def __init__(self, images: ImageDataset, device: torch.device):
        self.dataset: Dataset = images
        self.collate = collate
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on the device; whatever else it holds stays."""
        if self.stream is None:
            return self._moved(batch)
        with torch.cuda.stream(self.stream):
            moved = self._moved(batch)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for value in moved.values():
            if isinstance(value, Tensor):
                value.record_stream(current)  # else its memory could be handed out while a step still reads it
        return moved

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }


class JpegFeed(Feed):
    """Hands JPEGs over as they are stored and decodes them on the device.

    Raises ValueError where the device has no decoder, and for images that are decoded already.
    """

    def __init__(self, images: ImageDataset, device: torch.device):
        super().__init__(images, device)
        self.images = require_gpu_decoder(images, device)
        self.dataset = EncodedImages(self.images)
        self.collate = collate_encoded

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        return super()._moved(decode_batch(batch, self.images, self.device))


def feed_of(images: ImageDataset, data_args: DataArguments, device: torch.device) -> Feed:
    """The feed that `jpeg_decoder` names."""
    return (JpegFeed if data_args.jpeg_decoder == "gpu" else Feed)(images, device)


def set_up_loading(args: SSLTrainingArguments, data_args: DataArguments) -> None:
    """In place: no pinned memory where there is no copy to make; workers, if any, stay from epoch to epoch."""
    if args.device.type == "cpu" or data_args.cache == "device":
        args.dataloader_pin_memory = False
    if args.dataloader_num_workers > 0:
        args.dataloader_persistent_workers = True


def leave_on_host(loader: DataLoader, seed: int) -> DataLoader:
    """A loader that accelerate has prepared, its batches left for the feed and the seeds of its workers drawn apart.

    Else it draws from torch's global generator whenever its workers start, in each epoch or once where they stay, and
    the dropout of a resumed run would differ from that of the whole one.
    """
    loader.device = None  # type: ignore[attr-defined]  # where accelerate would move each batch to
    loader.base_dataloader.generator = torch.Generator().manual_seed(seed)  # type: ignore[attr-defined]
    return loader


def dismiss_workers(loader: DataLoader) -> None:
    """Ends the workers of a loader that is not read any more; accelerate holds on to every loader it has prepared."""
    getattr(loader, "base_dataloader", loader)._iterator = None
