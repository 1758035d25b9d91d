"""What is known, without a network, about the terms of the images that a run has seen."""

from __future__ import annotations

_IMAGENET = "ImageNet's terms of access allow non-commercial research and education alone"

TERMS = {
    "photo-patches": (
        "16 photographs of scikit-image's wheel. Its documentation calls eight of them CC0 (brick, camera, cell, "
        "chelsea, coffee, grass, gravel, retina), three public domain (astronaut, hubble_deep_field, rocket), two of "
        "no known copyright restrictions (coins, ihc), and states nothing for three (moon, motorcycle_left, page)"
    ),
    "frgfm/imagenette": f"ten classes of ImageNet; {_IMAGENET}",
    "ILSVRC/imagenet-1k": _IMAGENET,
}


def image_terms(dataset: str) -> str:
    """The terms of a data set's images, in one sentence without its full stop."""
    return TERMS.get(dataset, "the run did not record their licence")
