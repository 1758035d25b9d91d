"""The augmentation of supervised training: random resized crop and flip, and nothing of colour."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.views import Views


class CropAndFlip:
    """uint8 B x 3 x S x S to one augmented view of each image, normalised float32 B x 3 x r x r, on its device.

    Args:
        resolution: r.
        mean, std: of the normalisation, for each channel, of pixels in [0, 1].
        seeds: numbers that give the stream of random numbers, such as seed and rank; the global one is left alone.
        smallest: share of the image's area in the smallest crop.
    """

    def __init__(
        self, resolution: int, mean: Sequence[float], std: Sequence[float], *seeds: int, smallest: float = 0.08
    ):
        arguments = ViewArguments(
            resolution=resolution,
            resolution_step=1,  # any resolution will do
            crop_scale=[smallest, 1.0],
            jitter_p=0.0,
            grayscale_p=0.0,
            blur_p=[0.0],
            solarize_p=[0.0],
        )
        self.views = Views(arguments, mean, std)
        self.views.seed(*seeds)

    def __call__(self, images: Tensor) -> Tensor:
        return self.views.render(images, self.views.sample(images))
