"""The optimizer: which parameters decay, against lists written by hand, and LARS against lightly's."""

from contextlib import nullcontext

import pytest
import torch
from lightly.utils.lars import LARS
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from hf_essl.config import SSLTrainingArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.schedules import F1CLR, CurveScheduler
from hf_essl.training.optimizer import build_optimizer, norms_and_biases
from tests.helpers import small_trainer
from tests.test_trainer import whole_and_resumed

RESNET_WEIGHTS = """
    backbone.conv1.0.weight backbone.conv1.3.weight backbone.conv1.6.weight
    backbone.layer1.0.conv1.weight backbone.layer1.0.conv2.weight
    backbone.layer2.0.conv1.weight backbone.layer2.0.conv2.weight backbone.layer2.0.downsample.1.weight
    backbone.layer3.0.conv1.weight backbone.layer3.0.conv2.weight backbone.layer3.0.conv3.weight
    backbone.layer3.0.downsample.1.weight
    backbone.layer4.0.conv1.weight backbone.layer4.0.conv2.weight backbone.layer4.0.downsample.1.weight
    projector.0.weight projector.3.weight projector.6.weight
""".split()
SIMSIAM_PREDICTOR = ["predictor.0.weight", "predictor.3.weight"]
BLOCK = ["attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"]
VIT_WEIGHTS = [  # without backbone.cls_token and backbone.pos_embed
    "backbone.patch_embed.proj.weight",
    *(f"backbone.blocks.{i}.{name}" for i in range(6) for name in BLOCK),
]
BYOL_WEIGHTS = ["projector.0.weight", "projector.3.weight", "predictor.0.weight", "predictor.3.weight"]


def build(backbone="test_resnet", method="simsiam"):
    torch.manual_seed(0)
    return SSLModel.from_timm(backbone, method, method_args=METHODS[method].small_args).train()


def arguments(**changes):
    return SSLTrainingArguments(**{"output_dir": "unused", "use_cpu": True, "weight_decay": 0.01, **changes})


def groups_of(model, optimizer):
    """(settings, names) of each group."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        ((group.get("fixed_lr", False), group["weight_decay"]), [names[id(p)] for p in group["params"]])
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("optim", ["sgd", "lars", "adamw_torch"])
def test_norms_and_biases_form_groups_without_decay_beside_the_predictors(optim):
    model = build()
    found = groups_of(model, build_optimizer(model, arguments(optim=optim, decay_norm_and_bias=False)))
    assert [settings for settings, _ in found] == [(False, 0.01), (False, 0.0), (True, 0.01), (True, 0.0)]
    decayed, undecayed, predictor, predictor_undecayed = (names for _, names in found)
    assert decayed == RESNET_WEIGHTS and predictor == SIMSIAM_PREDICTOR
    assert set(predictor_undecayed) == {"predictor.1.weight", "predictor.1.bias", "predictor.3.bias"}
    assert sum(len(names) for _, names in found) == len(list(model.parameters()))
    assert {"backbone.bn1.weight", "backbone.layer2.0.downsample.2.bias", "projector.1.bias"} < set(undecayed)


def test_position_embeddings_and_class_tokens_of_a_vit_do_not_decay():
    model = build("test_vit", "byol")
    (decay, decayed), (rest, undecayed) = groups_of(
        model, build_optimizer(model, arguments(decay_norm_and_bias=False))
    )
    assert (decay, rest) == ((False, 0.01), (False, 0.0))
    assert decayed == VIT_WEIGHTS + BYOL_WEIGHTS
    assert {"backbone.cls_token", "backbone.pos_embed", "backbone.norm.weight"} < set(undecayed)
    assert not any(name.startswith("teacher") for name in decayed + undecayed)


def test_those_of_other_libraries_do_not_decay_either(tmp_path):
    folder = tmp_path / "vit"
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **size)).save_pretrained(folder)
    expected = {
        f"transformers:{folder}": {"model.embeddings.cls_token", "model.embeddings.position_embeddings"},
        "torchvision:vit_b_32": {"class_token", "encoder.pos_embedding"},
    }
    clip = tmp_path / "clip"
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **size)).save_pretrained(clip)
    expected[f"transformers:{clip}"] = {"model.embeddings.position_embedding.weight"}  # its class token is a vector
    heads = {"projector_hidden": 8, "projector_dim": 8}
    for name, tokens in expected.items():
        side = 224 if name.startswith("torchvision") else 32
        with torch.device("meta") if name.startswith("torchvision") else nullcontext():
            model = SSLModel.from_timm(name, method_args=heads, resolutions=(side,))
        found = {name for name in norms_and_biases(model) if model.get_parameter(name).ndim > 1}
        assert {name.removeprefix("backbone.").removeprefix("network.") for name in found} == tokens


def test_by_default_every_parameter_decays():
    model = build("test_vit", "byol")
    ((settings, names),) = groups_of(model, build_optimizer(model, arguments()))
    assert settings == (False, 0.01)
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("extra", [{}, {"trust_coeff": 0.02, "nesterov": True}], ids=["plain", "optim_args"])
def test_lars_equals_lightlys_over_steps_of_f1_clr(extra):
    """Five steps with the same random gradients."""
    ours, theirs = build(method="byol"), build(method="byol")
    text = ",".join(f"{name}={value}" for name, value in extra.items()) or None
    args = arguments(optim="lars", optim_args=text, decay_norm_and_bias=False, learning_rate=0.8)
    optimizer = build_optimizer(ours, args)
    scheduler = CurveScheduler(optimizer, F1CLR(6, 2), (0.85, 0.95))
    trained = [(name, p) for name, p in theirs.named_parameters() if p.requires_grad]
    excluded = [p for name, p in trained if p.ndim == 1]
    groups = [{"params": [p for _, p in trained if p.ndim > 1]}, {"params": excluded, "weight_decay": 0.0}]
    options = {name.replace("coeff", "coefficient"): value for name, value in extra.items()}
    published = LARS(groups, lr=0.8, momentum=0.9, weight_decay=0.01, **options)
    rates = [0, 0.4, 0.8, 0.6828427, 0.4]  # Eq. 8 by hand: 6 steps, 2 of warm-up
    momenta = [0.95, 0.9, 0.85, 0.8646447, 0.9]
    generator = torch.Generator().manual_seed(1)
    for rate, momentum in zip(rates, momenta, strict=True):
        for group in published.param_groups:
            group["lr"], group["momentum"] = rate, momentum
        for name, p in trained:
            p.grad = torch.randn(p.shape, generator=generator)
            ours.get_parameter(name).grad = p.grad.clone()
        optimizer.step()
        published.step()
        scheduler.step()
    before = dict(build(method="byol").named_parameters())
    for name, p in trained:
        assert not torch.equal(p, before[name]), name
        torch.testing.assert_close(ours.get_parameter(name), p, atol=1e-6, rtol=1e-5, msg=name)


def test_lars_by_hand():
    """w <- w - lr 0.001 |w| / (|g| + wd |w|) (g + wd w), also without decay; a bias moves by lr g."""
    for decay in (0.01, 0.0):
        model = build()
        args = arguments(optim="lars", decay_norm_and_bias=False, weight_decay=decay, learning_rate=2.0)
        optimizer = build_optimizer(model, args)
        weight, bias = model.predictor[3].weight, model.predictor[3].bias
        w, b = weight.detach().clone(), bias.detach().clone()
        generator = torch.Generator().manual_seed(0)
        g, h = (torch.randn(p.shape, generator=generator) for p in (weight, bias))
        weight.grad, bias.grad = g.clone(), h.clone()
        optimizer.step()
        ratio = 0.001 * w.norm() / (g.norm() + decay * w.norm())
        torch.testing.assert_close(weight.detach(), w - 2 * ratio * (g + decay * w))
        torch.testing.assert_close(bias.detach(), b - 2 * h)


@pytest.mark.parametrize("accumulated", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_lars_resumes_bit_for_bit(tmp_path, accumulated):
    settings = {"optim": "lars", "decay_norm_and_bias": False, "learning_rate": 1.0, "num_train_epochs": 1}
    settings |= {"per_device_train_batch_size": 16 // accumulated, "gradient_accumulation_steps": accumulated}
    whole, resumed = whole_and_resumed(tmp_path, small_trainer, 4, **settings)
    assert resumed.state.global_step == whole.state.global_step == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for ours, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert torch.equal(ours["momentum_buffer"], theirs["momentum_buffer"])
    momenta = [entry["momentum"] for entry in whole.state.log_history if "momentum" in entry]
    assert momenta[0] == pytest.approx(0.95) and min(momenta) == pytest.approx(0.85)


def test_a_skipped_step_of_the_gradient_scaler_leaves_lars_alone():
    """As fp16 does: gradients are scaled, and a step with an infinite one is skipped."""
    plain, scaled = build(), build()
    args = arguments(optim="lars", decay_norm_and_bias=False, learning_rate=1.0)
    optimizers = [build_optimizer(model, args) for model in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for infinite in (False, True, False):
        for parameter, other in zip(plain.parameters(), scaled.parameters(), strict=True):
            parameter.grad = None if infinite else torch.ones_like(parameter)
            other.grad = torch.full_like(other, torch.inf) if infinite else torch.ones_like(other) * scaler.get_scale()
        scaler.scale(torch.zeros(()))
        scaler.step(optimizers[1])
        scaler.update()
        if not infinite:
            optimizers[0].step()
    for (name, p), other in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(other, p, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "lasr"}, "optim is 'lasr'; choose one of lars, sgd, .*did you mean 'lars'"),
        ({"optim": "lars", "optim_args": "trust=1"}, "optim_args is 'trust'; choose one of trust_coeff, .*NAME=VALUE"),
        ({"optim": "lars", "optim_args": "trust_coeff=0"}, "'trust_coeff=0'; trust_coeff should be greater than 0"),
        ({"optim": "lars", "optim_args": "nesterov"}, "optim_args has 'nesterov'; nesterov should be a valid boolean"),
    ],
)
def test_optimizers_that_do_not_exist_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        arguments(**changes)
    assert "\n" not in str(error.value)
