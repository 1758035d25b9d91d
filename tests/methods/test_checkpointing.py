"""Activation checkpointing: equal gradients and statistics, less to remember, and plain errors."""

import copy

import pytest
import torch
from torch import nn

from hf_essl.methods import METHODS, SSLModel
from hf_essl.selection import frozen_running_stats
from tests.helpers import small_trainer

NETWORKS = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]


def build(backbone, method="simsiam", **backbone_args):
    torch.manual_seed(0)
    arguments = METHODS[method].small_args
    return SSLModel.from_timm(backbone, method, method_args=arguments, backbone_args=backbone_args).train()


def bytes_saved(model, views):
    """Bytes that autograd keeps between the forward and the backward pass, and the loss."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(*views)["loss"].mean()
    return sum(kept), loss


@pytest.mark.parametrize(("backbone", "method"), [*((name, "simsiam") for name in NETWORKS), ("test_resnet", "byol")])
def test_gradients_and_statistics_are_equal_with_and_without(backbone, method, views):
    plain = build(backbone, method)
    recomputing = copy.deepcopy(plain)
    recomputing.activation_checkpointing_enable()
    recomputing.activation_checkpointing_enable()  # as Trainer does in each `train`
    for model in (plain, recomputing):
        model(*views)["loss"].mean().backward()
    for (name, one), other in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, msg=name)
    for (name, one), other in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        torch.testing.assert_close(other, one, msg=name, atol=0, rtol=0)  # updated once per view


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_autograd_keeps_less(backbone, views):
    plain = build(backbone)
    recomputing = copy.deepcopy(plain)
    recomputing.activation_checkpointing_enable()
    assert bytes_saved(recomputing, views)[0] < 0.8 * bytes_saved(plain, views)[0]


def test_each_block_runs_twice_and_the_teacher_once(views):
    model = build("test_resnet", "byol")
    model.activation_checkpointing_enable()
    runs = {"student": 0, "teacher": 0}

    def count(which):
        return lambda *_: runs.__setitem__(which, runs[which] + 1)

    model.backbone.layer1[0].conv1.register_forward_hook(count("student"))
    model.teacher.backbone.layer1[0].conv1.register_forward_hook(count("teacher"))
    model(*views)["loss"].mean().backward()
    assert runs == {"student": 4, "teacher": 2}


def test_statistics_stay_frozen_in_the_selection_pass(views):
    model = build("test_resnet")
    model.activation_checkpointing_enable()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), frozen_running_stats(model):
        model.embed(views[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropped_paths_are_the_same_in_the_recomputation(views):
    """Otherwise the gradients would be those of another network."""
    gradients = []
    for recompute in (False, True):
        model = build("test_vit", drop_path_rate=0.5)
        if recompute:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model(*views)["loss"].mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_run_equals_one_without(tmp_path):
    """Three steps of Trainer, with channels-last weights, selection and the curriculum."""
    found = []
    for name in ("plain", "recomputed"):
        trainer = small_trainer(tmp_path / name, max_steps=3, gradient_checkpointing=name == "recomputed")
        trainer.train()
        found.append(trainer.model.state_dict())
        assert bool(getattr(trainer.model.backbone, "grad_checkpointing", False)) == (name == "recomputed")
    torch.testing.assert_close(*found)


@pytest.mark.slow
def test_under_torch_compile(tmp_path, views):
    plain = build("test_vit")
    compiled = copy.deepcopy(plain)
    compiled.activation_checkpointing_enable()
    compiled.backbone.compile(backend="aot_eager", dynamic=False)
    for model in (plain, compiled):
        model(*views)["loss"].mean().backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name, atol=1e-5, rtol=1e-4)
    with pytest.raises(
        ValueError, match=r"torch_compile and activation_checkpointing .* backbone with BatchNorm; set"
    ):
        small_trainer(tmp_path, gradient_checkpointing=True, torch_compile=True)


def test_a_backbone_without_checkpointing_is_refused():
    with pytest.raises(ValueError, match=r"activation_checkpointing .* is true, but ConVit cannot") as error:
        SSLModel.from_timm("convit_tiny", method_args=METHODS["simsiam"].small_args).activation_checkpointing_enable()
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match="Sequential cannot recompute its activations: it has no set_grad_checkpointing"
    ):
        hand_built = METHODS["simsiam"](nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8)))
        hand_built.activation_checkpointing_enable()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_reentrant": True}, "use_reentrant: True"),
        ({"every_n_layers": 2}, "every_n_layers: 2"),
        ({"a": 1}, "a: 1"),
    ],
)
def test_options_that_timm_does_not_have_are_refused(tmp_path, options, named):
    with pytest.raises(ValueError, match=f"activation_checkpointing_kwargs contains {named}"):
        small_trainer(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=options)


def test_the_default_option_is_accepted(tmp_path):
    options = {"use_reentrant": False}
    small_trainer(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=options, max_steps=1).train()
