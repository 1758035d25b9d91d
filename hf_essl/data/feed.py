"""Batches on their way to the device: pinned memory, and a copy that overlaps the running step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_essl.data.dataset import collate


class Feed:
    """Moves the batches of a loader to the device: uint8 images, N x 3 x S x S, and their labels.

    On a GPU the copy of a pinned batch has a stream of its own: it does not wait for the previous step, and later work
    waits only for the copy.
    """

    collate = staticmethod(collate)

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on the device; its other values stay."""
        if self.stream is None:
            return self._move(batch)
        with torch.cuda.stream(self.stream):
            moved = self._move(batch)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for value in moved.values():
            if isinstance(value, Tensor):
                value.record_stream(current)  # otherwise its memory could be reused while a step still reads it
        return moved

    def _move(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
