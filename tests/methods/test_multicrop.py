"""Multi-crop: DINO's whole step against plain tensors, and the local views' loss of every method."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_essl.methods import METHODS, SSLModel
from hf_essl.schedules import Constant, CurveScheduler, WeightDecay
from hf_essl.training.step import run_step

STEPS, IMAGES, LOCAL = 20, 5, 3  # four epochs of five steps
LR, BETA1, BETA2, EPS = 0.01, 0.9, 0.999, 1e-8
HEAD = {"hidden": 10, "bottleneck": 6, "output_dim": 7}
LAST = ("projector.5.weight", "projector.5.gain")


def batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        pair = torch.randn(2, IMAGES, 3, 12, 12, generator=generator)
        yield pair, torch.randn(LOCAL, IMAGES, 3, 6, 6, generator=generator)


def logits(w, view):
    x = F.adaptive_avg_pool2d(view, 2).flatten(1) @ w["backbone.2.weight"].T + w["backbone.2.bias"]
    for layer in ("0", "2", "4"):
        x = x @ w[f"projector.{layer}.weight"].T + w[f"projector.{layer}.bias"]
        x = x * (1 + torch.erf(x / math.sqrt(2))) / 2 if layer != "4" else x
    vectors = w["projector.5.gain"] * w["projector.5.weight"] / w["projector.5.weight"].norm(dim=1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True) @ vectors.T


class Oracle:
    """DINO with AdamW as its authors' loops over crops, in plain tensors: views are a list, globals first."""

    def __init__(self, weights):
        self.student = {name: value.clone().requires_grad_() for name, value in weights.items()}
        self.teacher = {name: value.clone() for name, value in weights.items()}
        self.center = torch.zeros(HEAD["output_dim"])
        self.moments = {name: [torch.zeros_like(value), torch.zeros_like(value), 0] for name, value in weights.items()}

    def step(self, views, temperature, tau, decay, frozen):
        targets = [logits(self.teacher, view) for view in views[:2]]
        outputs, total, terms = [logits(self.student, view) for view in views], 0, 0
        for i, target in enumerate(targets):
            for j, output in enumerate(outputs):
                if i != j:
                    probability = ((target - self.center) / temperature).softmax(dim=1)
                    total = total - (probability * (output / 0.1).log_softmax(dim=1)).sum(dim=1)
                    terms += 1
        assert terms == 2 * LOCAL + 2
        losses = total / terms
        gradients = torch.autograd.grad(losses.mean(), list(self.student.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(self.student.items(), gradients, strict=True):
                if not (frozen and name in LAST):
                    self.adamw(name, weight, gradient, 0.0 if name.endswith("bias") else decay)
                self.teacher[name] = tau * self.teacher[name] + (1 - tau) * weight
            self.center = 0.9 * self.center + 0.1 * torch.cat(targets).mean(dim=0)
        return losses.detach()

    def adamw(self, name, weight, gradient, decay):
        first, second, count = self.moments[name]
        first, second, count = (
            BETA1 * first + (1 - BETA1) * gradient,
            BETA2 * second + (1 - BETA2) * gradient**2,
            count + 1,
        )
        self.moments[name] = [first, second, count]
        weight *= 1 - LR * decay
        weight -= LR * first / (1 - BETA1**count) / ((second / (1 - BETA2**count)).sqrt() + EPS)


def test_twenty_steps_of_dino_with_local_views_are_those_of_plain_tensors():
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8))
    settings = {**HEAD, "norm_last_layer": False, "head_std": 0.3, "warmup_teacher_epochs": 3, "momentum": 0.9}
    model = SSLModel.from_module(network, "dino", method_args=settings).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    oracle = Oracle({name: p.detach() for name, p in trained.items()})
    biases = [p for name, p in trained.items() if name.endswith("bias")]
    groups = [
        {"params": [p for name, p in trained.items() if not name.endswith("bias")]},
        {"params": biases, "weight_decay": 0.0, "undecayed": True},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    scheduler = CurveScheduler(optimizer, Constant(), weight_decay=WeightDecay(0.04, 0.4, STEPS))
    temperatures = [0.04, 0.055, 0.07, 0.07]  # by epoch
    for step, (pair, local) in enumerate(batches()):
        fall = (1 + math.cos(math.pi * step / STEPS)) / 2
        expected = oracle.step(
            [*pair, *local], temperatures[step // 5], 1 - 0.1 * fall, 0.4 - 0.36 * fall, frozen=step < 5
        )
        views = {"first": pair[0], "second": pair[1], "local": local}
        loss = run_step(model, views, optimizer, progress=step / STEPS, epoch=step / 5)
        scheduler.step()
        torch.testing.assert_close(loss, expected.mean(), atol=1e-5, rtol=1e-5)
    for name, p in trained.items():
        torch.testing.assert_close(p.detach(), oracle.student[name].detach(), atol=2e-5, rtol=1e-4)
        of_teacher = model.teacher.get_parameter(name.replace("projector", "head"))
        torch.testing.assert_close(of_teacher, oracle.teacher[name], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model.center[0], oracle.center, atol=2e-5, rtol=1e-4)


def build(method, **backbone_args):
    torch.manual_seed(0)
    arguments = METHODS[method].small_args
    backbone = "test_vit" if backbone_args else "test_resnet"
    return SSLModel.from_timm(backbone, method, method_args=arguments, backbone_args=backbone_args).train()


def unit(x):
    return F.normalize(x, dim=1)


def cosine(a, b):
    return (unit(a) * unit(b)).sum(dim=1)


def simclr(model, q, k1, k2):
    """Each target against the views of all other images; the image's other target is no negative."""
    count, losses = len(q), []
    for n in range(count):
        negatives = [i for i in range(count) if i != n]
        against = torch.cat([k1[negatives], k2[negatives]])
        for key in (k1, k2):
            scores = unit(torch.cat([key[n : n + 1], against])) @ unit(q[n : n + 1])[0] / 0.1
            losses.append(scores.logsumexp(0) - scores[0])
    return torch.stack(losses).view(count, 2).mean(dim=1)


def mocov2(model, q, k1, k2):
    def info_nce(key):
        scores = torch.cat([cosine(q, key)[:, None], unit(q) @ model.queue.T], dim=1) / 0.2
        return scores.logsumexp(dim=1) - scores[:, 0]

    return (info_nce(k1) + info_nce(k2)) / 2


def lejepa(model, q, k1, k2):
    distance = (q - (k1 + k2) / 2).square().mean(dim=1)
    t = torch.linspace(0, 3, 17)
    angles = (q @ model.vectors)[:, :, None] * t
    error = (torch.exp(1j * angles).mean(dim=0) - torch.exp(-t.square() / 2)).abs().square()
    weighted = 2 * torch.trapezoid(error * torch.exp(-t.square() / 2), t)
    return 0.95 * distance + 0.05 * len(q) * weighted.mean()


BY_HAND = {  # the loss of a local view's query with both target keys; Grill et al.'s is a sum over both directions
    "simsiam": lambda model, q, k1, k2: -(cosine(q, k1) + cosine(q, k2)) / 2,
    "byol": lambda model, q, k1, k2: 4 - 2 * cosine(q, k1) - 2 * cosine(q, k2),
    "simclr": simclr,
    "mocov2": mocov2,
    "lejepa": lejepa,
    "distill": lambda model, q, k1, k2: 1 - (cosine(q, k1) + cosine(q, k2)) / 2,
}
PAIR = {"lejepa": 2}  # weights of the pair other than 1: LeJEPA's mean is over views, of which the pair has two


@pytest.mark.parametrize("method", BY_HAND)
def test_the_loss_is_the_mean_over_the_pair_and_the_local_views(method, views):
    model = build(method)
    local = torch.randn(2, 6, 3, 32, 32)
    with torch.no_grad():
        pair = build(method)(*views)["loss"]
        queries = build(method).embed(local.flatten(0, 1))[0].unflatten(0, (2, 6))
        fresh = build(method)
        keys = fresh.targets(views, tuple(fresh.embed(view)[1] for view in views))
        output = model(*views, local=local)
    from_local = [BY_HAND[method](model, query, *keys) for query in queries]
    weight = PAIR.get(method, 1)
    expected = (weight * pair + from_local[0] + from_local[1]) / (weight + 2)
    torch.testing.assert_close(output["loss"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output["loss_components"]["local_views"], torch.stack(from_local).mean())


@pytest.mark.parametrize("method", METHODS)
def test_the_student_sees_the_local_views_in_one_batch_and_the_teacher_does_not(method, views):
    model, seen, taught = build(method), [], []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    if hasattr(model, "teacher"):
        hook = lambda _, inputs: taught.append(inputs[0].shape[-1])  # noqa: E731
        model.teacher.register_forward_pre_hook(hook)
    model(*views, local=torch.randn(4, 6, 3, 32, 32))["loss"].mean().backward()
    assert seen == [(6, 3, 64, 64)] * 2 + [(24, 3, 32, 32)]
    assert set(taught) == ({64} if hasattr(model, "teacher") else set())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("lejepa", "distill")])
def test_loss_at_collapse_holds_with_local_views(method):
    model = build(method)
    point = F.normalize(torch.randn(1, 32), dim=1).expand(6, -1)
    if method == "mocov2":
        point = point[:, :16]
        model.queue = unit(point[:1]).expand(40, -1).clone()
    if method == "dino":
        point = torch.zeros(6, 32)
    loss = model.local_loss(point, (point, point)).mean().item()
    assert loss == pytest.approx(model.loss_at_collapse(images=6), abs=1e-5)


def test_drop_path_acts_in_the_student_alone():
    model, view = build("dino", drop_path_rate=0.9), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model.backbone(view), model.backbone(view))
        assert torch.equal(model.teacher(view), model.teacher(view))


def test_head_std_and_norm_of_the_last_layer():
    torch.manual_seed(0)
    settings = {"hidden": 512, "bottleneck": 64, "output_dim": 32}
    published = SSLModel.from_timm("test_vit", "dino", method_args={**settings, "head_std": 0.02})
    for layer in (0, 2, 4):
        assert published.projector[layer].weight.std().item() == pytest.approx(0.02, rel=0.05)
    x = torch.randn(3, 64)
    fixed = SSLModel.from_timm("test_vit", "dino", method_args=settings).projector
    assert fixed(x).abs().max() <= 1 and [name for name, _ in fixed[-1].named_parameters()] == ["weight"]
    trained = SSLModel.from_timm("test_vit", "dino", method_args={**settings, "norm_last_layer": False}).projector
    trained.load_state_dict(fixed.state_dict(), strict=False)
    torch.testing.assert_close(trained(x), fixed(x))
    trained[-1].gain.data[5] = 3.0
    torch.testing.assert_close(trained(x)[:, 5], 3 * fixed(x)[:, 5])
