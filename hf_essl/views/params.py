"""The parameters of augmented views, which know no pixel size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

REFERENCE_SIZE = 224
"""Side in pixels at which the sigma of the blur and RandAugment's sharpness are stated."""

NEUTRAL_JITTER = torch.tensor([1.0, 1.0, 1.0, 0.0])
"""The row of `ViewParams.jitter` that changes nothing."""


@dataclass(frozen=True)
class ViewParams:
    """What was drawn for one view of each of N images, on the host.

    Sizes are relative, so the same parameters can be rendered at any resolution: boxes are fractions of the image, the
    blur's sigma is stated in pixels of a 224 px view.

    They stay on the host, where they were drawn: choosing the images that an operation touches would otherwise
    wait for the device once an operation.
    """

    box: Tensor
    """N x 4: left, top, width, height of the crop."""
    flip: Tensor
    """N, bool: mirrored left to right."""
    jitter: Tensor
    """N x 4: factors of brightness, contrast, saturation, shift of hue in turns; `NEUTRAL_JITTER` changes nothing."""
    grayscale: Tensor
    """N, bool."""
    sigma: Tensor
    """N: sigma of the Gaussian blur at 224 px; 0 is no blur."""
    solarize: Tensor
    """N, bool."""
    operations: Tensor = None  # type: ignore[assignment]
    """N x n, int64: positions in `randaugment.OPERATIONS`, in the order of application; by default none, n = 0."""
    strengths: Tensor = None  # type: ignore[assignment]
    """N x n in [-1, 1]: the operations' strengths, as shares of the end of their ranges."""

    def __post_init__(self):
        if self.operations is None:
            object.__setattr__(self, "operations", torch.empty(len(self.box), 0, dtype=torch.int64))
            object.__setattr__(self, "strengths", torch.empty(len(self.box), 0))

    def __len__(self) -> int:
        return len(self.box)

    def take(self, index: Tensor | slice) -> ViewParams:
        """The parameters at these positions, by an index, a mask or a slice."""
        return ViewParams(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def concatenate(candidates: Sequence[ViewParams]) -> ViewParams:
        """From m candidates of N, the parameters of m · N views, one candidate after the other."""
        return ViewParams(**{f.name: torch.cat([getattr(c, f.name) for c in candidates]) for f in fields(ViewParams)})

    @staticmethod
    def gather(candidates: list[ViewParams], choice: Tensor) -> ViewParams:
        """For each image n the parameters of candidate `choice[n]`: m candidates of N and a choice of N to N."""
        rows = torch.arange(len(choice))
        return ViewParams(
            **{f.name: torch.stack([getattr(c, f.name) for c in candidates])[choice, rows] for f in fields(ViewParams)}
        )
