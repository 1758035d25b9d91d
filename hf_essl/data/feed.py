"""Batches: samples stacked, and copied to the device while the previous step runs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


def collate(samples: Any) -> dict[str, Any]:
    """Samples to a batch; a batch that the dataset has gathered is returned unchanged.

    Returns:
        {"image": uint8 B x 3 x S x S, "label": int64 B, "unreadable": list}.
    """
    if isinstance(samples, dict):
        return samples
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "unreadable": [one for sample in samples for one in sample["unreadable"]],
    }


class Feed:
    """Moves the batches of a loader to the device.

    On a GPU the copy of a pinned batch has its own stream: it does not wait for the previous step, and later work
    waits only for the copy.
    """

    collate = staticmethod(collate)

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on the device; its other values stay as they are."""
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            tensors = {
                key: value.to(self.device, non_blocking=True)
                for key, value in batch.items()
                if isinstance(value, Tensor)
            }
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for value in tensors.values():
                value.record_stream(current)  # otherwise its memory could be reused while a step still reads it
        return batch | tensors
