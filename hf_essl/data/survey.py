"""What a dataset holds, found before a run without decoding it: counts, labels, sizes, and what is left out."""

import statistics
from dataclasses import dataclass, replace

import torch

from hf_essl.common import evenly_spaced
from hf_essl.config import DataArguments
from hf_essl.data.builtin import built_in
from hf_essl.data.dataset import ImageDataset, image_count
from hf_essl.data.decode import stored_size
from hf_essl.data.inventory import collected_notices
from hf_essl.data.labels import NO_LABEL
from hf_essl.data.load import load_images

SAMPLES = 64  # images whose size is read


@dataclass(frozen=True)
class Survey:
    """The images of a dataset.

    train_images, eval_images: how many; eval_images is 0 without an evaluation split.
    classes: labels that occur among the training images; 0 if they have none.
    per_class: training images of the rarest class; 0 without labels.
    short_side: median in pixels of up to 64 training images; None if it is not known.
    notices: lines about what is left out and which labels are not used.
    """

    train_images: int
    eval_images: int = 0
    classes: int = 0
    per_class: int = 0
    short_side: int | None = None
    notices: tuple[str, ...] = ()


def survey(args: DataArguments) -> Survey:
    """Surveys the dataset of the arguments. Raises ValueError as `load_images` does, and for a stream."""
    if args.streaming:
        raise ValueError(f"streaming is true with {args.dataset}; a stream needs a recipe, which states max_steps")
    with collected_notices() as notices:
        images = load_images(replace(args, cache="none"))
    labels = images.train.labels
    counts = torch.zeros(0) if labels is None else labels[labels != NO_LABEL].unique(return_counts=True)[1]
    return Survey(
        train_images=image_count(images.train) or 0,
        eval_images=0 if images.eval is None else image_count(images.eval) or 0,
        classes=len(counts),
        per_class=int(counts.min()) if len(counts) else 0,
        short_side=args.image_size if built_in(args.dataset) else _short_side(images.train),
        notices=tuple(notices),
    )


def _short_side(images: ImageDataset) -> int | None:
    """The median short side of some images; unreadable ones do not count."""
    source, sides = getattr(images, "source", None), []
    for index in evenly_spaced(image_count(images) or 0, SAMPLES):
        try:
            sides.append(min(stored_size(source.read(index)[0])))  # type: ignore[union-attr]
        except Exception:  # a damaged image may raise anything; the run names it later
            continue
    return round(statistics.median(sides)) if sides else None
