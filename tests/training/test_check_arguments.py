"""transformers.Trainer's other arguments, and `predict`."""

import inspect

import numpy as np
import pytest
import torch
from transformers import Trainer

from hf_essl.config import SSLTrainingArguments
from hf_essl.trainer import SSLTrainer
from hf_essl.training.check_arguments import KNOWN, REFUSED
from tests.helpers import patches, small_trainer


@pytest.fixture
def trainer(tmp_path):  # one per test: another trainer resets accelerate's state
    return small_trainer(tmp_path / "run", max_steps=2)


def build(trainer, tmp_path, **others):
    args = SSLTrainingArguments(str(tmp_path), use_cpu=True, lr_schedule="constant", max_steps=2, knn_k=3)
    args.per_device_train_batch_size = 8
    return SSLTrainer(trainer.model, args, patches("train", 32), data_args=trainer.data_args, **others)


def test_every_argument_of_the_installed_trainer_has_its_place():
    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert arguments <= set(KNOWN) | set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_would_be_ignored_are_refused(name, trainer, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is set, which SSLTrainer does not accept: "):
        build(trainer, tmp_path, **{name: object()})


def test_typos_and_schedulers_are_refused(trainer, tmp_path):
    with pytest.raises(TypeError, match="did you mean 'view_args'"):
        build(trainer, tmp_path, view_arg=None)
    with pytest.raises(ValueError, match="optimizers has a scheduler"):
        build(trainer, tmp_path, optimizers=(None, object()))


def test_an_optimizer_of_ones_own_trains(trainer, tmp_path):
    optimizer = torch.optim.RMSprop(trainer.model.parameters(), lr=1e-3)
    built = build(trainer, tmp_path, optimizers=(optimizer, None))
    built.train()
    assert built.optimizer.optimizer is optimizer and len(optimizer.state) > 0


@pytest.mark.parametrize("count", [1, 5, 33])
def test_predict_returns_features_and_labels_of_any_number_of_images(count, trainer):
    images = patches("validation", count)
    found = trainer.predict(images)
    features, labels = trainer.features(images)
    assert found.predictions.shape == (count, trainer.model.num_features)
    assert np.array_equal(found.predictions, features.numpy()) and np.array_equal(found.label_ids, labels.numpy())
