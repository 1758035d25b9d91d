"""Every field inherited from transformers.TrainingArguments works, is refused in one line, or means nothing."""

import dataclasses
import logging
from functools import cached_property

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments

from hf_essl.config import SSLTrainingArguments
from hf_essl.config.inherited import REFUSED, WITHOUT_MEANING, WORKS, describe_inherited
from hf_essl.config.optimizers import OPTIMIZERS
from hf_essl.recipe import RecipeError, load_recipe
from hf_essl.trainer import SSLTrainer
from hf_essl.training.callbacks import LogOftenCallback
from hf_essl.training.optimizer import build_optimizer
from tests.helpers import patches, small_trainer

LATER = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # not in 5.17


def test_every_field_of_the_installed_transformers_has_its_place():
    """A field of a new release fails here until it is placed."""
    own = set(SSLTrainingArguments.__annotations__)
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    placed = [WORKS, REFUSED.keys(), WITHOUT_MEANING.keys()]
    assert fields - own <= set().union(*placed)
    assert set().union(*placed) - own - fields <= LATER, "no name that transformers does not have"
    assert sum(map(len, placed)) == len(set().union(*placed)), "no field has two places"
    assert own & set(WORKS) == {"dataloader_persistent_workers"}
    text = describe_inherited()
    assert all(name in text for name in fields - own)
    assert not LATER & fields or fields >= LATER


REFUSED_VALUES = {
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_steps": 10,
    "optim_target_modules": "all-linear",
    "label_smoothing_factor": 0.1,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "include_num_input_tokens_seen": "all",
    "length_column_name": "size",
    "train_sampling_strategy": "group_by_length",
    "label_names": ["label"],
    "remove_unused_columns": True,
    "logging_nan_inf_filter": True,
    "prediction_loss_only": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"],
    "batch_eval_metrics": True,
    "deepspeed": None,  # its package is needed to set it
    "parallelism_config": None,
    "enable_jit_checkpoint": True,
    "hub_token": "hf_secret",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_is_one_line_in_python_and_in_recipes(name, tmp_path):
    value = REFUSED_VALUES[name]
    arguments = SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **{name: value})
    if value is None:
        setattr(arguments, name, object())
    with pytest.raises(ValueError, match=f"^{name} is .*, which is refused: ") as error:
        arguments.check()
    assert "\n" not in str(error.value) and "hf_secret" not in str(error.value)
    if value is None:
        return
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"use_cpu: true\n{name}: {value!r}\n")
    with pytest.raises(RecipeError, match=name) as error:
        load_recipe(recipe)
    assert "\n" not in str(error.value) and "hf_secret" not in str(error.value)


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches"])
def test_batches_that_one_process_splits_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"^accelerator_config has {name}, which is refused"):
        SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, accelerator_config={name: True}).check()


@pytest.mark.parametrize("name", sorted(WITHOUT_MEANING.keys() - {"local_rank"}))
def test_a_field_without_meaning_is_named_in_the_log(name, tmp_path, caplog):
    default = getattr(SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True), name)
    with caplog.at_level(logging.WARNING):
        small_trainer(tmp_path, **{name: not default})
        assert f"{name} is {not default} and has no effect" in caplog.text
        caplog.clear()
        small_trainer(tmp_path)
    assert "no effect" not in caplog.text


def test_plain_training_arguments_are_refused(tmp_path):
    model = small_trainer(tmp_path).model
    with pytest.raises(
        ValueError, match=r"args is a TrainingArguments; SSLTrainer takes hf_essl\.SSLTrainingArguments"
    ):
        SSLTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True), patches("train", 32))


# ---- fields that work: what each one changes ----


PLAIN = {"resolution_schedule": "progressive"}  # the other curriculum needs a warm-up


def run(tmp_path, **fields):
    trainer = small_trainer(tmp_path, **{"max_steps": 3, **fields})
    trainer.remove_callback(LogOftenCallback)  # so few steps would all be logged
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def evaluations(trainer):
    return [entry["step"] for entry in trainer.state.log_history if "eval_rankme" in entry]


def saved(tmp_path):
    return sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0, 3]),
        ({"eval_strategy": "steps", "eval_steps": 1}, [0, 1, 2, 3]),
        ({"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2}, [0, 2, 3]),
        ({"eval_on_start": True}, [0, 3]),
    ],
)
def test_when_it_evaluates(fields, expected, tmp_path):
    assert sorted(set(evaluations(run(tmp_path, **fields)))) == expected
    assert len(evaluations(run(tmp_path, overwrite_output_dir=True, **fields))) == len(expected), "none of them twice"


@pytest.mark.parametrize(
    ("fields", "logged"),
    [({"logging_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}, 2), ({"logging_steps": 2}, 1)],
)
def test_when_it_logs(fields, logged, tmp_path):
    assert len(losses(run(tmp_path, **fields))) == logged


def test_logging_first_step(tmp_path):
    trainer = run(tmp_path, logging_steps=3, logging_first_step=True)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 3]


@pytest.mark.parametrize("strategy", ["steps", "epoch", "no", "best"])
def test_when_it_saves(strategy, tmp_path):
    expected = {"steps": [1, 2, 3], "epoch": [6, 12], "no": [], "best": None}[strategy]
    length = {"max_steps": -1, "num_train_epochs": 2} if strategy == "epoch" else {}
    trainer = run(tmp_path, save_strategy=strategy, save_steps=1, save_total_limit=5, **length)
    if strategy == "best":
        expected = [trainer.state.best_global_step]
        assert trainer.args.metric_for_best_model == "eval_knn_accuracy"
    assert saved(tmp_path) == expected


@pytest.mark.parametrize("metric", [None, "rankme"])
def test_the_best_model_is_loaded_at_the_end(metric, tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = run(tmp_path, load_best_model_at_end=True, metric_for_best_model=metric, save_total_limit=9, **fields)
    name = f"eval_{metric or 'knn_accuracy'}"
    found = {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry and entry["step"]}
    best = max(found.values())
    assert trainer.state.best_metric == best
    assert trainer.evaluate()[name] == pytest.approx(best)


@pytest.mark.parametrize("metric", [None, "loss", "probe_accuracy"])
def test_a_metric_that_is_not_measured_is_refused_before_the_run(metric, tmp_path):
    train = patches("train", 96)
    train.labels = None
    trainer = small_trainer(tmp_path, train=train, held=train, save_strategy="best", metric_for_best_model=metric)
    with pytest.raises(ValueError, match=r"metric_for_best_model is .*; choose one of retrieval, feature_std, rankme"):
        trainer.train()
    assert not trainer.state.global_step


@pytest.mark.parametrize(
    "fields",
    [
        {"adam_beta2": 0.5},
        {"adam_epsilon": 0.1},
        {"seed": 7},
        {"data_seed": 7},
        {"train_sampling_strategy": "sequential"},
        {"gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_a_field_changes_the_weights(fields, tmp_path):
    """And the same value twice gives the same weights."""
    shared = {
        "optim": "adamw_torch",
        "lr_schedule": "cosine",
        "warmup_epochs": 0,
        "learning_rate": 1e-3,
        "views": PLAIN,
    }
    first, second, other = (
        run(tmp_path / name, **shared, **changed).model.projector[0].weight
        for name, changed in (("a", fields), ("b", fields), ("c", {}))
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_adam_beta1_is_the_momentum_unless_the_schedule_cycles_it(tmp_path, caplog):
    shared = {"optim": "adamw_torch", "adam_beta1": 0.5, "learning_rate": 1e-3}
    trainer = run(tmp_path / "a", lr_schedule="cosine", warmup_epochs=0, views=PLAIN, **shared)
    assert trainer.optimizer.param_groups[0]["betas"][0] == 0.5
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "b", lr_schedule="f1_clr", **shared)
    assert "adam_beta1 is 0.5 and has no effect: f1_clr cycles it from 0.85 to 0.95" in caplog.text


def test_the_loader_gets_its_settings(tmp_path):
    fields = {
        "dataloader_num_workers": 1, "dataloader_persistent_workers": False, "dataloader_prefetch_factor": 3,
        "dataloader_multiprocessing_context": "fork", "dataloader_in_order": False,
    }  # fmt: skip
    loader = small_trainer(tmp_path, **fields).get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, False, 3)
    assert loader.multiprocessing_context.get_start_method() == "fork" and not loader.in_order
    assert small_trainer(tmp_path, dataloader_num_workers=1).get_train_dataloader().persistent_workers


@pytest.mark.slow
def test_a_smaller_batch_is_found_after_an_out_of_memory_error(tmp_path, monkeypatch):
    step, sizes = SSLTrainer.training_step, []

    def training_step(self, model, inputs, num_items_in_batch=None):
        sizes.append(len(inputs["image"]))
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(SSLTrainer, "training_step", training_step)
    trainer = run(tmp_path, auto_find_batch_size=True)
    assert sizes[0] == 16 and sizes[-1] <= 8 and trainer.state.global_step == 3
    assert trainer.args.per_device_train_batch_size == 16 and trainer.state.train_batch_size == sizes[-1]
    assert trainer.step_log.images_seen == 3 * sizes[-1], "the attempts that failed have trained on nothing"
    predicted = trainer.predicted_cost()
    assert predicted.images_per_step == sizes[-1]
    assert predicted.counted_petaflops == pytest.approx(trainer.state.total_flos / 1e15)


@pytest.mark.slow
def test_a_resume_keeps_the_batch_that_was_found(tmp_path, monkeypatch):
    """96 images in batches of 8 are 12 steps an epoch, where 16 were asked for and would be 6."""
    step = SSLTrainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        if len(inputs["image"]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(SSLTrainer, "training_step", training_step)
    settings = {"auto_find_batch_size": True, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 7}
    first = small_trainer(tmp_path, **settings)
    first.train()
    size = first.state.train_batch_size
    steps = 96 // size
    assert size <= 8 and first.state.global_step == steps
    resumed = small_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert resumed.state.global_step == steps and not resumed.is_finished
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.state_dict().items())


def test_weights_alone_cannot_be_resumed(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=3, save_only_model=True)
    with pytest.raises(
        ValueError, match=r"checkpoint-3 has weights only \(save_only_model: true\) and cannot be resumed"
    ):
        small_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_an_optimizer_works_or_is_refused_in_one_line(optim, tmp_path):
    arguments = SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, optim=optim, learning_rate=0.01)
    try:
        arguments.check()
    except ValueError as error:
        assert str(error).startswith(f"optim is {optim}, which cannot be used: ") and "\n" not in str(error)
        return
    model = nn.Linear(2, 2)
    model.fixed_lr_modules, model.clears_gradients = (), False
    optimizer, before = build_optimizer(model, arguments), model.weight.detach().clone()
    for _ in range(10):  # RAdam warms up
        optimizer.zero_grad()
        model(torch.ones(3, 2)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model.weight, before)


def test_some_optimizers_need_a_package_that_is_not_here(tmp_path):
    with pytest.raises(ValueError, match=r"optim is lomo, which cannot be used: .*pip install"):
        SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, optim="lomo").check()


def test_optim_args_act_or_are_refused(tmp_path):
    trainer = small_trainer(tmp_path, optim="sgd", optim_args="momentum=0.5")
    assert trainer.create_optimizer().param_groups[0]["momentum"] == 0.5
    with pytest.raises(ValueError, match=r"optim_args is 'weight_decay=0.5', which adamw_torch ignores; remove it"):
        small_trainer(tmp_path, optim="adamw_torch", optim_args="weight_decay=0.5")


def test_schedule_free_weights_are_averaged_where_they_are_evaluated_and_saved(tmp_path):
    pytest.importorskip("schedulefree")
    fields = {"optim": "schedule_free_sgd", "lr_schedule": "constant", "warmup_epochs": 0, "views": PLAIN}
    trainer = run(tmp_path, save_strategy="steps", save_steps=3, **fields)
    stored = load_file(tmp_path / "checkpoint-3" / "model.safetensors")["projector.0.weight"]
    training = trainer.model.projector[0].weight.detach().clone()
    trainer.optimizer.eval()
    averaged = trainer.model.projector[0].weight
    distance = (training - averaged).abs().max()
    assert distance > 0 and (stored - averaged).abs().max() < distance / 100, "each switch rounds the weights"


@pytest.mark.parametrize("changed", [{"seed": 7}, {"data_seed": 7}], ids=str)
def test_the_seed_orders_a_stream(changed, tmp_path):
    rows = [{"image": Image.new("RGB", (8, 8), (index, 0, 0))} for index in range(64)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()

    def first_batch(**fields):
        trainer = small_trainer(tmp_path, train=stream, max_steps=2, **fields)
        return next(iter(trainer.get_train_dataloader()))["image"][:, 0, 0, 0].tolist()

    assert first_batch() == first_batch() != first_batch(**changed)


def test_a_smaller_batch_cannot_be_sought_with_a_stream(tmp_path):
    stream = datasets.Dataset.from_list([{"image": Image.new("RGB", (8, 8))}] * 32).to_iterable_dataset()
    trainer = small_trainer(tmp_path, train=stream, max_steps=2, auto_find_batch_size=True)
    with pytest.raises(ValueError, match="auto_find_batch_size is true with a stream"):
        trainer.train()


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "accelerate's configuration chooses DEEPSPEED, .*; use DDP or FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "accelerate's configuration chooses MEGATRON_LM, .*; use DDP or FSDP"),
        ("ACCELERATE_USE_FSDP", "FSDP of version 1 .* set fsdp_version: 2"),
    ],
)
def test_an_engine_chosen_by_accelerates_configuration_is_refused(variable, told, monkeypatch):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RecipeError, match=told):
        load_recipe("recipes/quickstart.yaml")
    monkeypatch.setenv(variable, "false")
    load_recipe("recipes/quickstart.yaml")


def test_fsdp_on_a_cpu_is_refused_since_accelerate_would_train_by_ddp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match=r"FSDP needs GPUs: .*; use DDP, --accelerate_config cpu"):
        SSLTrainingArguments(use_cpu=True)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(ValueError, match="FSDP needs GPUs"):
        SSLTrainingArguments(use_cpu=True, fsdp=True)
    with pytest.raises(ValueError, match="FSDP of version 1"):
        SSLTrainingArguments(use_cpu=True, fsdp="full_shard", fsdp_config={"version": 1})


@pytest.mark.parametrize("value", ["zero2.json", {"zero_optimization": {"stage": 2}}])
def test_deepspeed_is_refused_before_its_package_is_looked_for(value):
    with pytest.raises(ValueError, match=r"^deepspeed is .*, which is refused: DeepSpeed is not supported; use DDP"):
        SSLTrainingArguments(deepspeed=value)


def test_one_of_several_visible_gpus_trains_and_a_line_says_so(tmp_path, monkeypatch, caplog):
    """transformers would train under nn.DataParallel, in batches as many times larger."""
    devices = TrainingArguments._setup_devices.func

    def four_gpus(self):
        found = devices(self)
        self._n_gpu = 4
        return found

    several = cached_property(four_gpus)
    several.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", several)
    trainer = small_trainer(tmp_path)
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 16
    assert "4 GPUs are visible and one of them trains; for all of them, add --accelerate_config" in caplog.text
