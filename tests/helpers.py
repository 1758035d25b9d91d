"""A run small enough for a test: 96 patches of 32 px, a network of 0.4 M parameters, every strategy switched on."""

import contextlib
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import timm
import torch

from hf_essl import export_backbone
from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.cost import FlopCounter
from hf_essl.data import CachedImages
from hf_essl.data.photo_patches import photo_patches
from hf_essl.methods import METHODS, SSLModel
from hf_essl.trainer import SSLTrainer

VIEWS = {
    "resolution": 32,
    "min_resolution": 16,
    "resolution_step": 8,
    "resolution_schedule": "super_progressive",
    "min_magnitude": 4.0,
    "max_magnitude": 6.0,
    "selection": "hard",
    "num_views": 3,
    "selection_resolution": 16,
}
TRAINING = {
    "per_device_train_batch_size": 16,
    "num_train_epochs": 2,
    "lr_schedule": "f1_clr",
    "warmup_epochs": 0.5,
    "learning_rate": 0.1,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "knn_k": 5,
}


COUNTERS: dict[str, FlopCounter] = {}


@cache
def _patches(split: str) -> CachedImages:
    return photo_patches(split, 32)


@contextlib.contextmanager
def quickstart_teacher() -> Iterator[None]:
    """The current folder has an untrained backbone where recipes/quickstart/distill.yaml looks for its teacher."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        network = timm.create_model("test_resnet", num_classes=0)
        export_backbone(network, Path("runs/quickstart/backbone"), input_size=96)
        yield


def patches(split: str, count: int) -> CachedImages:
    """Photo patches of 32 px, evenly spaced over the classes."""
    whole = _patches(split)
    return whole.take([i * len(whole) // count for i in range(count)])


def small_trainer(output_dir, *, train=None, held=None, views=None, callbacks=None, method="simsiam", **training):
    """A trainer over 96 patches (6 steps an epoch); `training` and `views` override."""
    torch.manual_seed(0)
    view_args = ViewArguments(**{**VIEWS, **(views or {})})
    model = SSLModel.from_timm(
        "test_resnet", method, method_args=METHODS[method].small_args, resolutions=view_args.resolutions
    )
    trainer = SSLTrainer(
        model,
        SSLTrainingArguments(output_dir=str(output_dir), **{**TRAINING, **training}),
        train if train is not None else patches("train", 96),
        held if held is not None else patches("validation", 32),
        view_args=view_args,
        data_args=DataArguments(image_size=32),
        callbacks=callbacks,
    )
    counter = COUNTERS.setdefault(method, trainer.flop_counter)  # operations are counted once per network
    trainer.flop_counter = counter.under(trainer.views.args)
    return trainer
