"""How many images a recipe trains on, without reading them where that is known."""

from __future__ import annotations

from hf_essl.arguments import DataArguments

KNOWN = {"photo-patches": 4096, "frgfm/imagenette": 9469, "ILSVRC/imagenet-1k": 1281167}
"""Training images of the data sets that the recipes name."""


def count_training_images(args: DataArguments) -> int:
    """Training images of these arguments.

    Raises:
        ValueError: where the data set cannot be found or read.
    """
    if args.dataset in KNOWN:
        count = KNOWN[args.dataset]
    else:
        from hf_essl.data.dataset import image_count
        from hf_essl.data.load import load_images

        count = image_count(load_images(args).train) or 0
        if not count:
            raise ValueError(f"dataset {args.dataset} is a stream without a length; give --images N")
    return min(count, args.max_train_samples or count)
