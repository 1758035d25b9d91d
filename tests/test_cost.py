"""The cost model against the paper's printed tables, and the count against a real step."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.cost import FlopCounter, StepFlops, estimate_cost, steps_per_epoch
from hf_essl.methods import METHODS, SSLModel
from hf_essl.selection import HardAugment
from hf_essl.views import Views


class Siamese(nn.Module):
    """The smallest network of the SSLModel contract; its teacher, where it has one, is a second forward pass."""

    def __init__(self, name="test_resnet", has_teacher=False, drop_rate=0.0, device=None):
        super().__init__()
        with torch.device(device or "cpu"):
            self.backbone = timm.create_model(name, num_classes=0)
            self.head = nn.Sequential(
                nn.Linear(self.backbone.num_features, 32), nn.BatchNorm1d(32), nn.Dropout(drop_rate)
            )
        self.has_teacher = has_teacher

    def embed(self, view):
        z = self.head(self.backbone(view))
        return z, z

    def forward(self, first, second):
        (q1, k1), (q2, k2) = self.embed(first), self.embed(second)
        if self.has_teacher:
            with torch.no_grad():
                k1, k2 = self.embed(first)[1], self.embed(second)[1]
        loss = -(F.cosine_similarity(q1, k2.detach()) + F.cosine_similarity(q2, k1.detach())) / 2
        return {"loss": loss, "embedding": k1.detach()}


@pytest.fixture(scope="module")
def model():
    return Siamese(device="meta")  # the paper's speed-ups are the same for every network


def cost(model, view_args=None, *, steps=1200, images=1, **training_args):
    args = SSLTrainingArguments(use_cpu=True, **training_args)
    return estimate_cost(model, view_args or ViewArguments(), args, steps, images)


def f1_clr(epochs, warmup):
    return {"lr_schedule": "f1_clr", "num_train_epochs": epochs, "warmup_epochs": warmup}


def super_progressive(min_resolution, **others):
    return ViewArguments(resolution_schedule="super_progressive", min_resolution=min_resolution, **others)


HARD = {"selection": "hard", "num_views": 6, "selection_resolution": 64}


# torch counts convolutions and matrix products alone: 4.09 GMAC where the paper's tables imply 4.13 to 4.14
@pytest.mark.parametrize(("has_teacher", "printed"), [(False, 247), (True, 371)])
def test_table_2_imagenette_800_epochs(has_teacher, printed):
    steps = 800 * steps_per_epoch(9469, 128)
    got = cost(Siamese("resnet50", has_teacher, device="meta"), steps=steps, images=128).paper_petaflops
    assert got == pytest.approx(printed, rel=0.015)


@pytest.mark.parametrize(("name", "printed"), [("resnet50", 8494), ("resnet18", 3756)])
def test_table_1_imagenet_200_epochs(name, printed):
    steps = 200 * steps_per_epoch(1_281_167, 512)
    assert cost(Siamese(name, device="meta"), steps=steps, images=512).paper_petaflops == pytest.approx(
        printed, rel=0.015
    )


@pytest.mark.parametrize(("min_resolution", "printed"), [(64, 1.82), (96, 1.60), (128, 1.40)])
def test_table_6_super_progressive(model, min_resolution, printed):
    got = cost(model, super_progressive(min_resolution), **f1_clr(480, 80)).paper_speedup
    assert got == pytest.approx(printed, rel=0.02)


def test_table_3_rows_over_800_epochs(model):
    shorter = 800 / 480
    assert shorter * cost(model, **f1_clr(480, 80)).paper_speedup == pytest.approx(1.7, abs=0.05)
    assert shorter * cost(model, super_progressive(96), **f1_clr(480, 80)).paper_speedup == pytest.approx(
        2.7, abs=0.05
    )
    assert shorter * cost(model, ViewArguments(**HARD), **f1_clr(480, 80)).paper_speedup == pytest.approx(
        1.5, abs=0.05
    )
    every = cost(model, super_progressive(96, **HARD), **f1_clr(480, 80)).paper_speedup
    assert shorter * every == pytest.approx(2.4, abs=0.05)


@pytest.mark.parametrize(("num_views", "printed"), [(4, 5.4), (5, 6.8), (6, 8.2), (8, 10.9)])
def test_table_8_hard_augment_overhead(model, num_views, printed):
    got = cost(model, ViewArguments(**HARD | {"num_views": num_views}))
    assert 100 * (1 / got.paper_speedup - 1) == pytest.approx(printed, abs=0.06)


def test_speedup_is_the_ratio_of_sums_and_not_the_mean_of_ratios(model):
    # stages 112 and 224, half the run each: 2 x 224^2 / (112^2 + 224^2) = 1.6, where the mean of ratios says 2.5
    view_args = ViewArguments(resolution_schedule="progressive", min_resolution=112, resolution_step=112)
    assert cost(model, view_args).paper_speedup == pytest.approx(1.6)


def test_plain_recipe_saves_nothing(model):
    got = cost(model)
    assert got.paper_speedup == got.measured_speedup == 1.0
    assert got.measured_selection_petaflops == 0.0


def test_random_selection_costs_no_pass(model):
    got = cost(model, ViewArguments(selection="random", num_views=6))
    assert got.measured_selection_petaflops == 0.0
    assert got.paper_speedup == 1.0


def test_measured_resnet50():
    # 8.17 GFLOP a forward pass at 224 px, and the backward pass 1.97 times that
    step = FlopCounter(Siamese("resnet50", device="meta"), 6, 64).step(224)
    assert step.forward == pytest.approx(2 * 8.17e9, rel=1e-3)
    assert step.backward == pytest.approx(1.97 * step.forward, rel=5e-3)
    # six forward passes at 64 px, (64 / 224)^2 of the two at 224 px each
    assert step.selection == pytest.approx(3 * step.forward * (64 / 224) ** 2, rel=0.01)
    assert step.total == step.forward + step.backward + step.selection


def test_measured_ledger_adds_up():
    model = Siamese()
    view_args = ViewArguments(
        resolution=64, min_resolution=32, resolution_schedule="progressive", selection="hard", num_views=4,
        selection_resolution=32,
    )  # fmt: skip
    got = cost(model, view_args, steps=10, images=100)
    counter = FlopCounter(model, 4, 32)
    small, large = counter.step(32), counter.step(64)
    assert got.measured_petaflops * 1e15 == pytest.approx(5 * 100 * (small.total + large.total))
    assert got.measured_forward_petaflops * 1e15 == pytest.approx(5 * 100 * (small.forward + large.forward))
    assert got.measured_backward_petaflops * 1e15 == pytest.approx(5 * 100 * (small.backward + large.backward))
    assert got.measured_selection_petaflops * 1e15 == pytest.approx(10 * 100 * small.selection)
    plain = 10 * 100 * (large.forward + large.backward)
    assert got.measured_speedup == pytest.approx(plain / (got.measured_petaflops * 1e15))


@pytest.mark.parametrize("has_teacher", [False, True])
@pytest.mark.parametrize("batch", [2, 5])
def test_count_equals_a_real_step(has_teacher, batch):
    model = Siamese(has_teacher=has_teacher)
    step = FlopCounter(model, 3, 32).step(64)
    views = torch.rand(3, batch, 3, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as selection:
        for view in views:
            model.embed(F.interpolate(view, size=32))
    with FlopCounterMode(display=False) as forward:
        loss = model(views[0], views[1])["loss"].mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    real = [c.get_total_flops() / batch for c in (forward, backward, selection)]
    assert [step.forward + step.teacher, step.backward, step.selection] == real


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("extra_targets", [False, True])
def test_count_is_within_1_percent_of_a_real_step_of_each_method(method, extra_targets):
    """Selection, forward, teacher, backward and optimizer of a batch of 16, as they run."""
    model = SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args).train()
    args = ViewArguments(
        resolution=64, selection="hard", num_views=4, selection_resolution=32, extra_targets=extra_targets
    )
    views, images = Views(args), torch.randint(0, 256, (16, 3, 80, 80), dtype=torch.uint8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with FlopCounterMode(display=False) as real:
        model.before_step(0.0, 1.0)
        chosen = HardAugment(views)(model, images)
        first, second = views.render(images, chosen.first), views.render(images, chosen.second)
        model(first, second, chosen.extra)["loss"].mean().backward()
        model.after_backward()
        optimizer.step()
        model.after_step()
    with FlopCounterMode(display=False) as rendering:  # what torch counts of it is no part of the ledger
        for size in (32, 32, 32, 32, 64, 64):
            views.render(images, chosen.first, size)
    step = FlopCounter.of(model, args).step(64)
    assert 16 * step.total == pytest.approx(real.get_total_flops() - rendering.get_total_flops(), rel=0.01)
    assert (step.teacher > 0) == model.has_teacher
    assert step.teacher == pytest.approx(step.forward, rel=0.02) if model.has_teacher else not step.teacher


def test_counters_of_one_model_share_what_they_counted():
    counter = FlopCounter(Siamese(), 4, 32)
    plain = counter.under(ViewArguments(resolution=64))
    assert counter.step(64).selection > 0 and plain.step(64).selection == 0
    assert plain._steps is counter._steps and list(plain._steps) == [64]


def test_frozen_parameters_need_no_backward():
    model = Siamese()
    full = FlopCounter(model).step(32)
    model.backbone.requires_grad_(False)
    frozen = FlopCounter(model).step(32)
    assert frozen.forward == full.forward
    assert frozen.backward < 0.01 * full.backward


def test_model_and_random_state_are_untouched():
    model = Siamese(drop_rate=0.5).eval()
    model.backbone.layer1.train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    cost(model, ViewArguments(resolution=64, **HARD))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_prepared_by_accelerate_and_compiled():
    from accelerate import Accelerator

    expected = FlopCounter(Siamese(), 2, 32).step(32)
    model = Siamese()
    model.backbone = torch.compile(model.backbone)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    assert FlopCounter(prepared, 2, 32).step(32) == expected


def test_counts_alone_within_a_process_group():
    expected = FlopCounter(Siamese()).step(32)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Siamese())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert FlopCounter(model).step(32) == expected
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_counts_once_a_resolution():
    counter = FlopCounter(Siamese(), 2, 32)
    first = counter.step(32)
    counter._model = None  # nothing left to count with
    assert counter.step(32) == first and isinstance(first, StepFlops)


def test_vision_transformer_counts_attention():
    model = Siamese("test_vit")
    block = model.backbone.blocks[0]
    tokens = model.backbone.patch_embed.num_patches + 1
    dim, hidden, depth = block.attn.qkv.in_features, block.mlp.fc1.out_features, len(model.backbone.blocks)
    each = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens**2 * dim
    patches = (tokens - 1) * model.backbone.patch_embed.proj.weight.numel()
    resolution = model.backbone.patch_embed.img_size[0]
    assert FlopCounter(model).backbone_macs(resolution) == depth * each + patches


@pytest.mark.parametrize("method", METHODS)
def test_the_packages_own_methods(method):
    model = SSLModel.from_timm("test_resnet", method=method)
    got = cost(model, ViewArguments(resolution=64, **HARD), steps=3, images=8)
    assert got.paper_petaflops > 0 and 0 < got.measured_selection_petaflops < got.measured_petaflops


def test_steps_per_epoch():
    assert steps_per_epoch(9469, 128) == 73
    assert steps_per_epoch(9469, 128, drop_last=False) == 74
    assert steps_per_epoch(256, 128, drop_last=False) == 2
    with pytest.raises(ValueError, match="100 images make no step of 128"):
        steps_per_epoch(100, 128)


def test_steps_below_one_are_refused():
    with pytest.raises(ValueError, match="steps and images_per_step are 0 and 1"):
        cost(Siamese(), steps=0)
