"""The cost model against the paper's printed tables, and the count against a real step."""

import copy
from functools import cache

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_essl.config import ViewArguments
from hf_essl.cost import FlopCounter, _count, estimate_cost, steps_per_epoch
from hf_essl.methods import METHODS, SSLModel
from hf_essl.schedules import Curriculum
from hf_essl.selection import HardAugment
from hf_essl.views import Views

WARMUP = 80 / 480  # Table 10
HARD = {"selection": "hard", "num_views": 6, "selection_resolution": 64}
SMALL = {"resolution": 64, "selection": "hard", "num_views": 4, "selection_resolution": 32}


def build(method="simsiam", backbone="test_resnet", **backbone_args):
    arguments = METHODS[method].small_args
    return SSLModel.from_timm(backbone, method, method_args=arguments, backbone_args=backbone_args).train()


@cache
def counted(method="simsiam", backbone="test_resnet"):
    """A model without memory and its counter: each network is counted once for all tests."""
    with torch.device("meta"):
        model = build(method, backbone)
    return model, FlopCounter(model)


def cost(view_args=None, *, method="simsiam", backbone="test_resnet", steps=1200, images=1):
    model, counter = counted(method, backbone)
    view_args = view_args or ViewArguments()
    return estimate_cost(model, view_args, Curriculum.with_warmup(view_args, WARMUP), steps, images, counter)


def super_progressive(min_resolution, **others):
    return ViewArguments(resolution_schedule="super_progressive", min_resolution=min_resolution, **others)


# torch counts only convolutions and matrix products: 4.09 GMAC where the paper's tables imply 4.13 to 4.14
@pytest.mark.parametrize(("method", "printed"), [("simsiam", 247), ("byol", 371)])
def test_table_2_imagenette_800_epochs(method, printed):
    steps = 800 * steps_per_epoch(9469, 128)
    got = cost(method=method, backbone="resnet50", steps=steps, images=128).paper_petaflops
    assert got == pytest.approx(printed, rel=0.015)


@pytest.mark.parametrize(("backbone", "printed"), [("resnet50", 8494), ("resnet18", 3756)])
def test_table_1_imagenet_200_epochs(backbone, printed):
    steps = 200 * steps_per_epoch(1_281_167, 512)
    assert cost(backbone=backbone, steps=steps, images=512).paper_petaflops == pytest.approx(printed, rel=0.015)


@pytest.mark.parametrize(("min_resolution", "printed"), [(64, 1.82), (96, 1.60), (128, 1.40)])
def test_table_6_super_progressive(min_resolution, printed):
    assert cost(super_progressive(min_resolution)).paper_speedup == pytest.approx(printed, rel=0.02)


@pytest.mark.parametrize(
    ("view_args", "printed"),
    [
        (ViewArguments(), 1.7),
        (super_progressive(96), 2.7),
        (ViewArguments(**HARD), 1.5),
        (super_progressive(96, **HARD), 2.4),
    ],
)
def test_table_3_rows_over_800_epochs(view_args, printed):
    assert 800 / 480 * cost(view_args).paper_speedup == pytest.approx(printed, abs=0.05)


@pytest.mark.parametrize(("num_views", "printed"), [(4, 5.4), (5, 6.8), (6, 8.2), (8, 10.9)])
def test_table_8_hard_augment_overhead(num_views, printed):
    got = cost(ViewArguments(**HARD | {"num_views": num_views}))
    assert 100 * (1 / got.paper_speedup - 1) == pytest.approx(printed, abs=0.06)
    assert got.paper_selection_overhead == pytest.approx(printed, abs=0.06)


def test_speedup_is_the_ratio_of_sums_and_not_the_mean_of_ratios():
    # stages 112 and 224, half the run each: 2 x 224^2 / (112^2 + 224^2) = 1.6, where the mean of ratios is 2.5
    view_args = ViewArguments(resolution_schedule="progressive", min_resolution=112, resolution_step=112)
    assert cost(view_args).paper_speedup == pytest.approx(1.6)


@pytest.mark.parametrize("view_args", [ViewArguments(), ViewArguments(selection="random", num_views=6)])
def test_the_plain_recipe_and_random_selection_save_and_cost_nothing(view_args):
    got = cost(view_args)
    assert got.paper_speedup == got.counted_speedup == 1.0
    assert got.counted_selection_petaflops == 0.0


def test_attention_pooling_is_counted():
    """A learned query attends to the 16 patches of 64 dimensions; its value then passes an MLP of 192."""
    models = [SSLModel.from_timm("test_vit", backbone_args={"global_pool": pool}) for pool in ("token", "map")]
    without, pooled = (FlopCounter(model).backbone_macs(64) for model in models)
    query_and_output, keys_and_values, products = 2 * 64 * 64, 16 * 64 * 128, 2 * 16 * 64
    assert pooled - without == query_and_output + keys_and_values + products + 2 * 64 * 192


def test_count_of_resnet50():
    # 8.17 GFLOP per forward pass at 224 px, and the backward pass 1.97 times that
    with torch.device("meta"):
        model = SSLModel.from_timm("resnet50", method_args={"projector_hidden": 1, "projector_dim": 1})
    step = FlopCounter.of(model, ViewArguments(**HARD)).step(224)
    assert step.forward == pytest.approx(2 * 8.17e9, rel=1e-3)
    assert step.backward == pytest.approx(1.97 * step.forward, rel=5e-3)
    # six forward passes at 64 px, (64 / 224)^2 of the two at 224 px each
    assert step.selection == pytest.approx(3 * step.forward * (64 / 224) ** 2, rel=0.01)


def test_a_run_costs_the_sum_of_its_steps():
    view_args = super_progressive(32, **SMALL)
    got, curriculum = cost(view_args, steps=10, images=100), Curriculum.with_warmup(view_args, WARMUP)
    counter = counted()[1].under(view_args)
    steps = [counter.step(curriculum.resolution(step / 10)) for step in range(10)]
    assert len(set(steps)) == 2
    assert got.counted_petaflops * 1e15 == pytest.approx(100 * sum(step.total for step in steps))
    for part in ("forward", "backward", "teacher", "selection"):
        expected = 100 * sum(getattr(step, part) for step in steps)
        assert getattr(got, f"counted_{part}_petaflops") * 1e15 == pytest.approx(expected)
    plain = cost(ViewArguments(resolution=64), steps=10, images=100)
    assert got.counted_speedup == pytest.approx(plain.counted_petaflops / got.counted_petaflops)


@pytest.mark.parametrize("method", ["simsiam", "byol"])
@pytest.mark.parametrize("batch", [2, 5])
def test_count_equals_a_real_step(method, batch):
    model, views = build(method), torch.rand(3, batch, 3, 64, 64)
    step = counted(method)[1].under(ViewArguments(**SMALL | {"num_views": 3})).step(64)
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
    """Selection, forward, teacher, backward and optimizer on a batch of 16."""
    model, args = build(method), ViewArguments(**SMALL, extra_targets=extra_targets)
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
    with FlopCounterMode(display=False) as rendering:  # not part of the count
        for size in (32, 32, 32, 32, 64, 64):
            views.render(images, chosen.first, size)
    step = counted(method)[1].under(args).step(64)
    assert 16 * step.total == pytest.approx(real.get_total_flops() - rendering.get_total_flops(), rel=0.01)
    assert (step.teacher > 0) == hasattr(model, "teacher")
    if method == "distill":
        return  # its teacher is another network, at its own resolution: tests/methods/test_distill.py
    assert step.teacher == pytest.approx(step.forward, rel=0.02) if model.has_teacher else not step.teacher


def test_counters_of_one_model_share_their_results():
    counter = FlopCounter.of(build(), ViewArguments(**SMALL))
    assert counter.step(64).selection > 0
    counter._model = None  # a second count would fail
    assert counter.step(64)._replace(selection=0.0) == counter.under(ViewArguments(resolution=64)).step(64)


def test_frozen_parameters_need_no_backward():
    model = build()
    model.backbone.requires_grad_(False)
    full, frozen = counted()[1].step(64), FlopCounter(model).step(64)
    assert frozen.forward == full.forward
    assert frozen.backward < 0.01 * full.backward


def test_model_and_random_state_do_not_change():
    model = build(drop_path_rate=0.5).eval()
    model.backbone.layer1.train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    FlopCounter.of(model, ViewArguments(**SMALL)).step(64)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_prepared_by_accelerate_and_compiled(monkeypatch):
    monkeypatch.setattr("accelerate.state.AcceleratorState._shared_state", {})  # of other tests
    model = build()
    model.backbone = torch.compile(model.backbone)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    assert FlopCounter(prepared).step(32) == counted()[1].step(32)


def test_counts_alone_within_a_process_group():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert FlopCounter(model).step(32) == counted()[1].step(32)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_vision_transformer_counts_attention():
    model, counter = counted(backbone="test_vit")
    block = model.backbone.blocks[0]
    tokens = model.backbone.patch_embed.num_patches + 1
    dim, hidden, depth = block.attn.qkv.in_features, block.mlp.fc1.out_features, len(model.backbone.blocks)
    each = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens**2 * dim
    patches = (tokens - 1) * model.backbone.patch_embed.proj.weight.numel()
    assert counter.backbone_macs(model.backbone.patch_embed.img_size[0]) == depth * each + patches


def test_steps_per_epoch():
    assert steps_per_epoch(9469, 128) == 73
    assert steps_per_epoch(9469, 128, drop_last=False) == 74
    assert steps_per_epoch(256, 128, drop_last=False) == 2
    with pytest.raises(ValueError, match="100 training images do not fill a batch of 128; lower per_device"):
        steps_per_epoch(100, 128)


def test_steps_below_one_are_rejected():
    with pytest.raises(ValueError, match="steps is 0; it should be greater than or equal to 1"):
        cost(steps=0)


TOKENS = {"resolution": 32, "selection": "hard", "num_views": 3, "selection_resolution": 16}


def kept_rows(images, resolution, share):
    """Rows of patch positions, their number by hand: patches of 8 px."""
    return torch.arange(int((resolution // 8) ** 2 * share)).expand(images, -1)


@pytest.mark.parametrize("method", ["simsiam", "dino"])
@pytest.mark.parametrize("tokens", [0.25, 0.5, 0.75])
def test_dropped_tokens_are_counted_as_in_a_real_step(method, tokens):
    """By torch on the CPU, with the kernel of the attention that it can count."""
    arguments = {"method_args": METHODS[method].small_args, "backbone_args": {"patch_size": 8}}
    model, views = (
        SSLModel.from_timm("test_vit", method, resolutions=(16, 32), **arguments).train(),
        torch.rand(3, 2, 3, 32, 32),
    )
    args = ViewArguments(**TOKENS, min_tokens=tokens, selection_tokens=0.5)
    step = FlopCounter.of(model, args).step(32, tokens)
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as selection:
            for view in views:
                model.embed_tokens(F.interpolate(view, size=16), kept_rows(2, 16, 0.5))
        with FlopCounterMode(display=False) as forward:
            kept = torch.stack([kept_rows(2, 32, tokens)] * 2, dim=1)
            loss = model(views[0], views[1], tokens=kept)["loss"].mean()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    real = [c.get_total_flops() / 2 for c in (forward, backward, selection)]
    assert [step.forward + step.teacher, step.backward, step.selection] == real
    assert step.teacher == FlopCounter(model).step(32).teacher  # it sees all tokens


def test_the_cost_of_a_run_with_tokens_by_hand():
    """Half of the steps with a quarter of the tokens: 5/8 of the student; all of the teacher, a third of a step."""
    arguments = {"method_args": METHODS["byol"].small_args, "backbone_args": {"patch_size": 8}}
    model = SSLModel.from_timm("test_vit", "byol", resolutions=(32,), **arguments)
    args = ViewArguments(resolution=32, min_tokens=0.25, token_stages=2)
    curriculum = Curriculum.with_warmup(args, 0.0)
    got = estimate_cost(model, args, curriculum, 10, 100)
    assert got.paper_speedup == pytest.approx(1 / ((2 * 5 / 8 + 1) / 3))
    counter = FlopCounter.of(model, args)
    few, all_tokens = counter.step(32, 0.25), counter.step(32)
    assert got.counted_petaflops * 1e15 == pytest.approx(100 * 5 * (few.total + all_tokens.total))
    assert got.counted_speedup == pytest.approx(2 * all_tokens.total / (few.total + all_tokens.total))
    assert few.teacher == all_tokens.teacher and few.total < 0.6 * all_tokens.total
    less = FlopCounter.of(model, ViewArguments(resolution=32, teacher_tokens=0.5)).step(32)
    assert less.forward == all_tokens.forward and 0.4 < less.teacher / all_tokens.teacher < 0.6


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_in_groups_by_hand(kind, groups):
    """Of a 3 x 3 convolution with 8 channels, 2 images of 6 x 6: a gradient costs as much as the forward pass."""
    layer = kind(8, 8, 3, padding=1, groups=groups)
    images = torch.zeros(2, 8, 6, 6, requires_grad=True)
    output = layer(images)
    with _count() as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 2 * 36 * 9 * 8 * 8 // groups)
    with _count() as counter:
        layer(images.detach()).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 2 * 36 * 9 * 8 * 8 // groups)  # forward, and the weights' gradient


@pytest.mark.parametrize(("method", "factor"), [("simsiam", 1.0), ("dino", 1.5)])
def test_local_views_in_the_papers_convention(method, factor):
    """Two local views cost as much as a pair of their size without a teacher: 4 at half the side are half a pair."""
    plain, multi = (
        cost(ViewArguments(resolution=64, resolution_step=32, local_resolution=32, local_views=n), method=method)
        for n in (0, 4)
    )
    assert multi.paper_petaflops / plain.paper_petaflops == pytest.approx((factor + 0.5) / factor)
    assert multi.paper_speedup == multi.counted_speedup == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_local_views_are_counted_as_a_step_makes_them(method):
    """A real step on the CPU with two images, and with the kernel of the attention that torch can count."""
    args = ViewArguments(resolution=64, local_views=3, local_resolution=32)
    model, views = build(method), [torch.randn(2, 3, 64, 64) for _ in range(2)]
    totals = []
    for local in (None, torch.randn(3, 2, 3, 32, 32)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*views, local=local)["loss"].mean().backward()
        totals.append(counter.get_total_flops() / 2)
    step = FlopCounter.of(model, args).step(64)
    assert step.total == totals[1] and step.local == totals[1] - totals[0] > 0
    got = cost(ViewArguments(resolution=64), method=method, steps=10, images=4)
    with_local = cost(args, method=method, steps=10, images=4)
    assert with_local.counted_local_petaflops == pytest.approx(10 * 4 * step.local / 1e15)
    assert with_local.counted_teacher_petaflops == got.counted_teacher_petaflops


def test_what_the_teachers_tokens_save_is_part_of_both_speedups():
    """The plain recipe's teacher sees all tokens; the counted cost of both is the step of the counter."""
    model = SSLModel.from_timm("test_vit", "byol", resolutions=(64,), method_args=METHODS["byol"].small_args)
    args = ViewArguments(resolution=64, teacher_tokens=0.5)
    curriculum = Curriculum.with_warmup(args, 0.0)
    plain = FlopCounter.of(model, ViewArguments(resolution=64)).step(64).total
    halved = FlopCounter.of(model, args).step(64).total
    cost = estimate_cost(model, args, curriculum, 10, 8)
    assert cost.counted_speedup == pytest.approx(plain / halved) and cost.counted_speedup > 1.05
    assert cost.paper_speedup == pytest.approx(1.2)  # 12 MACs against 8 and half of the teacher's 4
