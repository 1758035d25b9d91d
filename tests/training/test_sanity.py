"""What the first steps of a run show for certain."""

import logging

import pytest
import torch

from hf_essl.methods import METHODS, SSLModel
from hf_essl.training.sanity import MOVED_BY, moving_parts, one_class
from tests import fault_alarms
from tests.helpers import patches, small_trainer


def told(trainer, caplog):
    with caplog.at_level(logging.WARNING, "hf_essl.training.sanity"):
        trainer.train()
    return [record.getMessage() for record in caplog.records if record.name == "hf_essl.training.sanity"]


@pytest.mark.parametrize(
    ("method", "sabotage", "message"),
    [
        ("simsiam", "no_augmentation", "step 0: the two views of every image are equal"),
        ("simsiam", "equal_images", "step 0: all 16 images of the first batch are equal"),
        ("simsiam", "equal_labels", "step 0: all labels of the evaluation images are one class"),
        ("dino", "frozen_center", f"step {MOVED_BY}: the center did not change in {MOVED_BY} steps"),
        ("byol", "still_teacher", f"step {MOVED_BY}: the teacher did not change"),
        ("simclr", "frozen_student", f"step {MOVED_BY}: the student did not change"),
    ],
)
def test_a_sabotaged_run_is_told(method, sabotage, message, tmp_path, caplog):
    trainer = small_trainer(tmp_path, method=method, max_steps=12, knn_every_epochs=0, weight_decay=0.0)
    getattr(fault_alarms, sabotage)(trainer)
    lines = told(trainer, caplog)
    assert len(lines) == 1 and lines[0].startswith(message)


@pytest.mark.parametrize("method", METHODS)
def test_a_healthy_run_says_nothing(method, tmp_path, caplog):
    assert told(small_trainer(tmp_path, method=method, max_steps=11, knn_every_epochs=0), caplog) == []


def test_what_must_move():
    parts = {
        name: set(moving_parts(SSLModel.from_timm("test_resnet", name, method_args=METHODS[name].small_args)))
        for name in ("simsiam", "byol", "mocov2", "dino", "lejepa")
    }
    assert parts["simsiam"] == parts["lejepa"] == {"the student"}
    assert parts["byol"] == {"the student", "the teacher"}
    assert parts["mocov2"] == parts["byol"] | {"the queue"}
    assert parts["dino"] == parts["byol"] | {"the center"}


def test_unlabeled_images_are_no_class():
    images = patches("validation", 8)
    assert one_class(images) is None and one_class(None) is None
    images.labels.fill_(3)
    assert "one class" in one_class(images)
    images.labels = torch.full((8,), -1)
    assert one_class(images) is None
