"""What a frozen teacher says about whole images: once for each image, before the student's training."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.data import ImageDataset, StreamedImages, image_count
from hf_essl.evaluation.features import center_crops, extract_features
from hf_essl.methods import SSLModel


class ImageTargets:
    """The features of a method's `image_teacher`, on center crops as in an evaluation, kept on the training's device.

    They need N x D x 4 bytes, or half of that above 2 GB. Without an image teacher they are None, and nothing is kept.
    """

    def __init__(self, args: SSLTrainingArguments):
        self.args = args
        self.table: Tensor | None = None  # N x D, by the index of the image
        self.flops = 0.0  # of this process, that the run has not counted yet when it starts
        self.seconds = 0.0  # that a run needs to fill the table

    def fill(self, model: SSLModel, dataset: ImageDataset, accelerator: Accelerator) -> None:
        """Shows each training image to the teacher; call it on all processes, each does its share."""
        if model.image_teacher is None:
            return
        kept: list[int] = []
        features, _ = extract_features(
            model.image_teacher,
            dataset,
            resolution=model.image_teacher.side,
            mean=model.pixel_mean,
            std=model.pixel_std,
            crop_pct=self.args.eval_crop_pct,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            accelerator=accelerator,
            kept=kept,
            progress="teacher" if accelerator.is_main_process and not self.args.disable_tqdm else None,
        )
        self.table = features.new_zeros(image_count(dataset) or 0, features.shape[1], device=self.args.device)
        self.table[torch.tensor(kept, device=self.args.device)] = features.to(self.args.device)

    def of(self, batch: dict[str, Any]) -> Tensor | None:
        """The targets of a batch of the training images, float32 B x D."""
        if self.table is None:
            return None
        return self.table[batch["index"].to(self.table.device, non_blocking=True)].float()

    def look(self, model: SSLModel, images: Tensor, aspect: Tensor) -> Tensor | None:
        """The targets of other images, uint8 B x 3 x S x S on the model's device: float32 B x D."""
        teacher = model.image_teacher
        if teacher is None:
            return None
        crops = center_crops(teacher.side, self.args.eval_crop_pct, model.pixel_mean, model.pixel_std)
        return teacher(crops(images, aspect))


def check_image_teacher(model: SSLModel, images: ImageDataset, views: ViewArguments) -> None:
    """Raises ValueError if a teacher that sees whole images once gets a stream, or must tell views apart."""
    if model.image_teacher is None:
        return
    if isinstance(images, StreamedImages):
        raise ValueError("teacher_sees is images with a stream, whose images have no index; set teacher_sees: views")
    if views.extra_targets:
        raise ValueError(
            "extra_targets is true with teacher_sees: images, for which all views of an image have one target; set it "
            "to false"
        )
    if views.selection == "hard" and views.selection_score == "projection_cosine":
        raise ValueError(
            "selection_score is projection_cosine with teacher_sees: images, for which all views of an image have one "
            "target and no pair is harder; set selection_score: cosine"
        )
