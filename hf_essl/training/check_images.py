"""What a run needs of its images, checked before it starts."""

from torch import nn

from hf_essl.config import SSLTrainingArguments
from hf_essl.config.training import BEST_METRIC
from hf_essl.data import ImageDataset, StreamedImages, image_count
from hf_essl.evaluation.during_training import METRICS, check_neighbors
from hf_essl.methods import SSLModel

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def check_images(
    model: SSLModel,
    args: SSLTrainingArguments,
    train: ImageDataset,
    held_out: ImageDataset | None,
    bank: ImageDataset | None,
) -> None:
    """Raises ValueError, in one line, for images that the run cannot train on or be evaluated on as asked."""
    images, batch = image_count(train), args.train_batch_size * args.world_size
    _check_batch(model, args, images, batch)
    if images is not None:
        model.check_data(images, batch)
    check_neighbors(held_out, bank, args.knn_k)
    if held_out is not None and image_count(held_out) == 1:
        raise ValueError(
            "there is 1 image to evaluate on, and its statistics need 2; raise max_eval_samples or eval_holdout, or "
            "choose another eval_split"
        )
    if args.auto_find_batch_size and isinstance(train, StreamedImages):
        raise ValueError("auto_find_batch_size is true with a stream, which cannot start over; set the batch size")
    _check_best_metric(args, held_out if held_out is not None else bank)


def idle_lines(args: SSLTrainingArguments) -> list[str]:
    """A line if this process sees more GPUs than the one that it trains on."""
    if not args.idle_gpus:
        return []
    return [
        f"{args.idle_gpus + 1} GPUs are visible and one of them trains; for all of them, add --accelerate_config "
        f"multi_gpu to hf-essl pretrain, or use accelerate launch"
    ]


def accumulation_lines(model: SSLModel, args: SSLTrainingArguments) -> list[str]:
    """A line for each part of the training that sees less than a whole step at a time."""
    if args.gradient_accumulation_steps == 1:
        return []
    norms = any(isinstance(module, NORMS) for module in model.modules())
    shared = ["BatchNorm"] * norms + ["the negatives of the loss"] * model.uses_negatives
    total = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return [
        f"{what} uses {args.train_batch_size * args.world_size} of the {total:,} images of a step at a time, because "
        f"gradient_accumulation_steps is {args.gradient_accumulation_steps}; results may differ from one large batch"
        for what in shared
    ]


def _check_batch(model: SSLModel, args: SSLTrainingArguments, images: int | None, batch: int) -> None:
    if args.dataloader_drop_last and images is not None and images < batch:
        raise ValueError(
            f"{images} training images do not fill a batch of {batch}; lower per_device_train_batch_size, or set "
            f"dataloader_drop_last: false"
        )
    norms = any(isinstance(module, NORMS) for module in model.modules())
    if batch == 1 and norms:
        raise ValueError(
            "per_device_train_batch_size is 1, and BatchNorm cannot normalize one image; set it to 2 or more"
            + (": the data set must have as many images" if images == 1 else "")
        )
    alone = images is not None and not args.dataloader_drop_last and images % batch == 1
    if alone and args.world_size == 1 and norms:
        raise ValueError(
            f"{images} training images in batches of {batch} leave a last batch of one image, which BatchNorm "
            f"cannot normalize; set dataloader_drop_last: true, or another per_device_train_batch_size"
        )


def _check_best_metric(args: SSLTrainingArguments, queries: ImageDataset | None) -> None:
    """The metric that chooses the best checkpoint must be measured."""
    if args.metric_for_best_model is None:
        return
    name = args.metric_for_best_model.removeprefix("eval_")
    measured = [metric for metric in METRICS if metric != "probe_accuracy" or args.online_probe]
    if queries is None or queries.labels is None:
        measured = [metric for metric in measured if not metric.endswith("_accuracy")]
    if name not in measured:
        known = name in METRICS
        why = "which needs labeled evaluation images, or online_probe: true" if known else "which is not measured"
        default = " (the default)" if args.metric_for_best_model == BEST_METRIC else ""
        raise ValueError(f"metric_for_best_model is {name}{default}, {why}; choose one of {', '.join(measured)}")
