"""What a protocol evaluates (`Task`), and its entry in the table of protocols (`Protocol`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.config.fields import fields_of
from hf_essl.data import ImageDataset, image_count
from hf_essl.evaluation.backbone import LoadedBackbone
from hf_essl.evaluation.features import Transform, extract_features
from hf_essl.views import Views


@dataclass(frozen=True)
class Task:
    """A backbone, at its test resolution, and the labeled images to evaluate it on.

    Args:
        train, test: labeled images; a test image of a class that train lacks counts as wrong.
        indices: the training images to use; None for all. Each has a label.
        test_indices: the test images that have a label; None for all.
        batch_size: images per batch and process in feature extraction; per batch over all processes in fine-tuning.
        num_workers: processes that load images.
        seed: of the order of the images and of their augmentation.
        report: prints a line of progress.
    """

    loaded: LoadedBackbone
    train: ImageDataset
    test: ImageDataset
    accelerator: Accelerator
    indices: Sequence[int] | None = None
    test_indices: Sequence[int] | None = None
    batch_size: int = 256
    num_workers: int = 0
    seed: int = 0
    report: Callable[[str], None] = print

    @property
    def train_images(self) -> int:
        return len(self.indices) if self.indices is not None else image_count(self.train) or 0

    @property
    def test_images(self) -> int:
        return len(self.test_indices) if self.test_indices is not None else image_count(self.test) or 0

    def train_features(self, transform: Transform | None = None) -> tuple[Tensor, Tensor]:
        """Features, N x D, and labels, N, of the training images."""
        return self._features(self.train, self.indices, transform)

    def test_features(self) -> tuple[Tensor, Tensor]:
        """Features, M x D, and labels, M, of the test images."""
        return self._features(self.test, self.test_indices)

    def augmentation(self) -> Transform:
        """Random resized crops and flips, without color changes, from a private random stream of each process."""
        off: dict[str, Any] = {"jitter_p": 0.0, "grayscale_p": 0.0, "blur_p": [0.0], "solarize_p": [0.0]}
        args = ViewArguments(resolution=self.loaded.resolution, resolution_step=1, crop_scale=[0.08, 1.0], **off)
        views = Views(args, self.loaded.mean, self.loaded.std)
        views.seed(self.seed, self.accelerator.process_index)
        return lambda images, aspect: views.render(images, views.sample(images, aspect=aspect))

    def _features(
        self, images: ImageDataset, indices: Sequence[int] | None = None, transform: Transform | None = None
    ) -> tuple[Tensor, Tensor]:
        features, labels = extract_features(
            self.loaded.backbone,
            images,
            resolution=self.loaded.resolution,
            mean=self.loaded.mean,
            std=self.loaded.std,
            crop_pct=self.loaded.crop_pct,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            accelerator=self.accelerator,
            indices=indices,
            transform=transform,
        )
        assert labels is not None, "the images of a task have labels"
        return features, labels


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate a backbone.

    Args:
        title: how people write its accuracy, unless `run` returns another `title`.
        description: one line for help and documentation.
        run: evaluates a task with an instance of `settings_class`; returns `accuracy`, in percent, and further facts
            for the result, such as the value of a setting that is None by default, or a `title` that tells two
            variants of the protocol apart.
        settings_class: a dataclass of `option` fields: help text, default and range of each setting.
        batch_size: the default of its tasks.
    """

    title: str
    description: str
    run: Callable[[Task, Any], dict[str, Any]]
    settings_class: type
    batch_size: int = 256

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of its settings."""
        return tuple(fields_of(self.settings_class))
