"""Each private or fragile name of the libraries that the package uses: that it is there, and means what we think.

A failure here after an upgrade names what changed, before anything breaks silently.
"""

import inspect

import datasets
import pytest
import timm
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments
from transformers.integrations import (
    CodeCarbonCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    integration_utils,
)

from hf_essl import compat
from hf_essl.hub.trainer import HubTrainer
from hf_essl.methods import SSLModel
from hf_essl.training.base_trainer import BaseTrainer
from hf_essl.training.safe_checkpoints import SafeCheckpointTrainer


@pytest.fixture
def accelerator():
    """One that leaves no state behind, which other tests would find."""
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


OVERRIDES = {
    "_build_accelerator_args": ["kwargs"],
    "_clip_grad_norm": ["model"],
    "_save_checkpoint": ["model", "trial"],
    "_init_training_state": [
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ],
    "set_initial_training_values": ["args", "dataloader"],
    "_save_optimizer_and_scheduler": ["output_dir"],
    "_save_scaler": ["output_dir"],
    "_load_scaler": ["checkpoint"],
    "_update_auto_batch_size": ["batch_size"],
    "_save_rng_state": ["output_dir"],
    "_load_rng_state": ["checkpoint"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_save": ["output_dir", "state_dict"],
    "_push_from_checkpoint": ["checkpoint_folder"],
    "_finish_current_push": [],
    "create_optimizer": ["model"],
    "create_scheduler": ["num_training_steps", "optimizer"],
    "create_model_card": None,
    "init_hf_repo": None,
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "floating_point_ops": ["inputs"],
    "log": ["logs", "start_time"],
}
"""Methods of Trainer that we override, with their parameters; None if ours differ on purpose."""


@pytest.mark.parametrize("name", OVERRIDES)
def test_trainer_still_has_the_methods_that_are_overridden(name):
    parameters = list(inspect.signature(getattr(Trainer, name)).parameters)[1:]
    if OVERRIDES[name] is not None:
        assert parameters == OVERRIDES[name]


def test_every_private_override_is_listed():
    private = {
        name
        for owner in (SafeCheckpointTrainer, BaseTrainer, HubTrainer)
        for name in vars(owner)
        if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }
    assert private and private <= set(OVERRIDES)


def source_of(method):
    return inspect.getsource(getattr(Trainer, method))


def test_trainer_still_calls_what_we_override():
    module = inspect.getsource(inspect.getmodule(Trainer))
    for name in ("_build_accelerator_args", "_save_checkpoint", "_push_from_checkpoint", "_finish_current_push"):
        assert f"self.{name}(" in module
    assert "self._created_lr_scheduler" in module
    assert "_keys_to_ignore_on_save" in module and SSLModel._keys_to_ignore_on_save is None
    assert "self._save(" in source_of("save_model")
    saving = source_of("_save_checkpoint")
    for name in ("_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"):
        assert f"self.{name}(" in saving
    for name in ("_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state"):
        assert f"self.{name}(" in module
    for name in ("_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state", "_load_from_checkpoint"):
        assert source_of(name).count("torch.load(") == source_of(name).count("weights_only=True")


def test_the_optimizer_is_chosen_by_a_static_method():
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(optim="sgd", use_cpu=True))
    assert optimizer is torch.optim.SGD and "lr" in settings and "momentum" not in settings


def test_accelerate_marks_a_prepared_model_and_we_clear_the_mark(accelerator):
    model = nn.Linear(2, 2)
    accelerator.prepare_model(model, evaluation_mode=True)
    assert model._is_accelerate_prepared
    compat.forget_preparation(model)
    assert not hasattr(model, "_is_accelerate_prepared")
    compat.forget_preparation(model)  # a second time does nothing


def test_a_prepared_loader_keeps_its_batches_and_its_generator(accelerator):
    loader = accelerator.prepare_data_loader(DataLoader(TensorDataset(torch.arange(8.0)), batch_size=4))
    assert hasattr(loader, "base_dataloader") and loader.device is not None
    kept = compat.keep_batches_on_host(loader, seed=7)
    assert kept is loader and loader.device is None
    assert loader.base_dataloader.generator.initial_seed() == 7
    before = torch.get_rng_state()
    assert [len(batch) for (batch,) in loader] == [4, 4]
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_end_when_the_iterator_is_dropped():
    loader = DataLoader(TensorDataset(torch.arange(4.0)), num_workers=1, persistent_workers=True)
    next(iter(loader))
    worker = loader._iterator._workers[0]
    assert worker.is_alive()
    compat.shutdown_workers(loader)
    worker.join(timeout=20)
    assert not worker.is_alive() and loader._iterator is None


def test_many_tensors_are_interpolated_at_once():
    targets, sources = [torch.zeros(3), torch.ones(2)], [torch.ones(3), torch.zeros(2)]
    expected = [target.lerp(source, 0.25) for target, source in zip(targets, sources, strict=True)]
    compat.lerp_(targets, sources, 0.25)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(targets, expected, strict=True))


def test_the_process_group_is_hidden_inside_only():
    original = dist.is_initialized
    with compat.without_process_group():
        assert dist.is_initialized() is False and dist.is_initialized is not original
    assert dist.is_initialized is original


def test_a_plain_tensor_is_its_own_shard():
    value = torch.ones(2)
    assert compat.local_tensor(value) is value
    from torch.distributed.tensor import DTensor

    assert "_local_tensor" in DTensor.__slots__ or "_local_tensor" in DTensor.__annotations__


def test_recompiles_are_only_raised():
    before = torch._dynamo.config.recompile_limit
    try:
        compat.allow_recompiles(before + 10)
        assert torch._dynamo.config.recompile_limit == before + 10
        compat.allow_recompiles(1)
        assert torch._dynamo.config.recompile_limit == before + 10
    finally:
        torch._dynamo.config.recompile_limit = before
    assert compat.can_compile() in (True, False)


def test_datasets_fingerprints_follow_the_selection_and_streams_name_their_columns():
    rows = datasets.Dataset.from_dict({"a": [1, 2, 3]})
    assert compat.dataset_fingerprint(rows) != compat.dataset_fingerprint(rows.select([0, 1]))
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"a": 1}]))
    assert stream.features is None


def test_trackers_by_name(monkeypatch):
    assert {"wandb", "tensorboard", "trackio", "codecarbon", "mlflow"} <= set(compat.tracker_callbacks())
    assert compat.tracker_problem("wandb") is None
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)  # as for comet_ml without a key
    assert "cannot use the installed wandb" in compat.tracker_problem("wandb")
    unchecked = {
        n
        for n in compat.tracker_callbacks()
        if not hasattr(integration_utils, f"is_{compat.AVAILABILITY.get(n, n)}_available")
    }
    assert unchecked <= {"kubeflow"}  # it has no package of its own
    assert {WandbCallback, TensorBoardCallback, TrackioCallback, CodeCarbonCallback} <= set(
        compat.tracker_callbacks().values()
    )


def test_the_wandb_callback_has_the_state_that_ours_uses():
    callback = WandbCallback()
    assert callback._initialized is False and hasattr(callback, "_wandb") and hasattr(callback, "_log_model")
    assert list(inspect.signature(WandbCallback.setup).parameters)[:4] == ["self", "args", "state", "model"]


def test_codecarbon_reports_what_it_has_counted():
    names = {name for name, _ in inspect.getmembers(pytest.importorskip("codecarbon").EmissionsTracker)}
    assert {"flush", "start", "stop", "_prepare_emissions_data"} <= names
    assert "self.tracker" in inspect.getsource(CodeCarbonCallback.on_init_end)


def test_the_size_that_a_timm_model_is_built_for():
    assert compat.image_size_at_build(timm.create_model("levit_128s", img_size=64)) == 64
    assert compat.image_size_at_build(timm.create_model("test_vit", img_size=96)) == 96
    assert compat.image_size_at_build(timm.create_model("test_resnet")) is None
    assert compat.image_size_at_build(torch.nn.Linear(1, 1)) is None


def test_the_backward_pass_is_seen():
    seen = []
    value = torch.ones(1, requires_grad=True)
    value.register_hook(lambda gradient: seen.append(compat.in_backward()))
    seen.append(compat.in_backward())
    (2 * value).backward()
    seen.append(compat.in_backward())
    assert seen == [False, True, False]
