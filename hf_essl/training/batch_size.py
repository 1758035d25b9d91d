"""The largest batch that fits in the memory of a GPU, found by trial."""

import torch
from accelerate.utils import find_executable_batch_size

from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.methods import SSLModel
from hf_essl.selection import HardAugment
from hf_essl.training.optimizer import build_optimizer
from hf_essl.training.step import run_step
from hf_essl.views import Views

LARGEST, SPARE = 256, 0.9  # images; share of the memory that a trial may use


def largest_batch(
    model: SSLModel, views_args: ViewArguments, args: SSLTrainingArguments, image_size: int, largest: int = LARGEST
) -> int:
    """The largest of `largest`, half of it, a quarter …, with which a step at full resolution fits in memory.

    A trial is two steps on random images, with the selection pass of Hard Augment. The model's weights change.

    Raises ValueError if not even one image fits.
    """
    size = 2 * largest

    def halved() -> int:
        nonlocal size
        size //= 2
        return size

    @find_executable_batch_size(starting_batch_size=halved(), reduce_batch_size_fn=halved)
    def trial(batch_size: int) -> int:
        try_steps(model, views_args, args, image_size, batch_size)
        return batch_size

    try:
        return trial()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise ValueError(
            f"a step at {views_args.resolution} px does not fit in the GPU's memory, even with one image; choose a "
            f"smaller --backbone or --resolution"
        ) from error


def try_steps(
    model: SSLModel, views_args: ViewArguments, args: SSLTrainingArguments, image_size: int, batch_size: int
) -> None:
    """Two optimizer steps at full resolution; raises torch.OutOfMemoryError if they need more than the GPU has."""
    device = args.device
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(SPARE, device)
    try:
        model = model.to(device).train()
        optimizer, views = build_optimizer(model, args), Views(views_args, model.pixel_mean, model.pixel_std)
        views.resolution = views_args.resolution
        images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=device)
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        autocast = lambda: torch.autocast(device.type, dtype, enabled=args.bf16 or args.fp16)  # noqa: E731
        teacher = model.image_teacher
        seen = None if teacher is None else torch.zeros(batch_size, teacher.num_features, device=device)
        with model.show_images(seen):
            for _ in range(2):  # the second has the optimizer's state
                with autocast():
                    chosen = HardAugment(views)(model, images)
                run_step(model, chosen.render(views, images), optimizer, autocast=autocast)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
