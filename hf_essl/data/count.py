"""How many images a recipe trains on, without reading them if that is known."""

from __future__ import annotations

from hf_essl.config import DataArguments
from hf_essl.data.builtin import DATASETS
from hf_essl.data.dataset import image_count
from hf_essl.data.load import load_images


def count_training_images(args: DataArguments) -> int:
    """Training images of these arguments.

    Raises:
        ValueError: if the data set cannot be found or read, or is a stream.
    """
    known = DATASETS.get(args.dataset)
    count = known.train_images if known else image_count(load_images(args).train)
    if not count:
        raise ValueError(f"dataset {args.dataset} is a stream without a length; pass --images N")
    return min(count, args.max_train_samples or count)
