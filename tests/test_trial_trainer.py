"""`model_init` and `hyperparameter_search`: each trial has its own settings, model, schedule and folder."""

import importlib.util

import pytest
import torch

from hf_essl import SSLModel, SSLTrainer, SSLTrainingArguments, ViewArguments
from hf_essl.config import DataArguments
from hf_essl.training.step import MethodCallback
from hf_essl.trial_trainer import objective
from tests.helpers import TRAINING, VIEWS, patches

HEADS = {"projector_dim": 16, "predictor_hidden": 8}


def trainer(folder, model=None, model_init=None, **training):
    args = SSLTrainingArguments(str(folder), **{**TRAINING, "max_steps": 4, **training})
    return SSLTrainer(
        model,
        args,
        patches("train", 64),
        patches("validation", 32),
        model_init=model_init,
        view_args=ViewArguments(**VIEWS),
        data_args=DataArguments(image_size=32),
    )


def build():
    torch.manual_seed(0)
    return SSLModel.from_timm("test_resnet", method_args=HEADS, resolutions=ViewArguments(**VIEWS).resolutions)


def test_a_trainer_with_model_init_trains_as_one_with_a_model(tmp_path):
    first, second = trainer(tmp_path / "a", build()), trainer(tmp_path / "b", model_init=build)
    first.train()
    second.train()
    second.train()  # starts again from a new model
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_new_model_is_on_the_device_before_it_is_used(tmp_path, monkeypatch):
    """transformers moves it at the start of its loop; Hard Augment compares views before that."""
    calls = []
    for name in ("_move_model_to_device", "shown_pairs"):
        original = getattr(SSLTrainer, name)
        noted = lambda self, *args, name=name, original=original: calls.append(name) or original(self, *args)  # noqa: E731
        monkeypatch.setattr(SSLTrainer, name, noted)
    run = trainer(tmp_path, model_init=build)
    calls.clear()
    run.train()
    assert calls[:2] == ["_move_model_to_device", "shown_pairs"]


@pytest.mark.slow
def test_a_search_trains_each_trial_with_its_own_settings(tmp_path):
    import optuna

    seen = []

    def space(trial):
        return {
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 1.0, log=True),
            "max_steps": trial.suggest_int("max_steps", 2, 5),
        }

    def log(metrics):
        assert search.alarm.model is search.model and search.state.max_steps == search.args.max_steps
        if search.state.global_step == search.args.max_steps:
            seen.append((search.args.learning_rate, search.state.max_steps))
        return objective(metrics)

    search = trainer(tmp_path, model_init=build)
    best = search.hyperparameter_search(space, log, 3, sampler=optuna.samplers.RandomSampler(seed=0))
    assert len(set(seen)) == 3, "three trials ended, each with its own settings"
    assert (best.hyperparameters["learning_rate"], best.hyperparameters["max_steps"]) in seen
    assert 0 <= best.objective <= 100
    [hooks] = [callback for callback in search.callback_handler.callbacks if isinstance(callback, MethodCallback)]
    assert hooks.accelerator() is search.accelerator, "each trial has another one"


def test_without_model_init_or_optuna_it_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the trainer has no model_init"):
        trainer(tmp_path, build()).hyperparameter_search()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(ValueError, match="pip install optuna"):
        trainer(tmp_path, model_init=build).hyperparameter_search()


@pytest.mark.parametrize("both", [True, False])
def test_a_model_and_a_model_init_exclude_each_other(both, tmp_path):
    with pytest.raises(ValueError, match="pass either model or model_init"):
        trainer(tmp_path, build() if both else None, build if both else None)


def test_the_objective_is_knn_or_retrieval():
    assert objective({"eval_knn_accuracy": 3.0, "eval_retrieval": 2.0}) == 3.0
    assert objective({"eval_retrieval": 2.0, "eval_rankme": 9.0}) == 2.0
