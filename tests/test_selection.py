"""Hard Augment against brute force; `tests/methods/test_contract.py` checks that it changes no state."""

import copy
import itertools

import pytest
import skimage.data
import torch
import torchvision.transforms.v2.functional as TF
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hf_essl.config import ViewArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.selection import HardAugment, frozen_running_stats, pair_cosines, shown_pairs
from hf_essl.views import Views

IMAGES = torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SSLModel.from_timm("test_resnet", method_args=METHODS["simsiam"].small_args).train()


def arguments(**changes):
    return ViewArguments(
        **{"resolution": 64, "num_views": 4, "selection": "hard", "selection_resolution": 32, **changes}
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("score", "render"),
    [("cosine", "direct"), ("loss", "direct"), ("cosine", "downsample"), ("projection_cosine", "direct")],
)
def test_the_chosen_pair_has_the_highest_loss_of_all_pairs_by_brute_force(model, score, render):
    views = Views(arguments(selection_score=score, selection_render=render), seed=5)
    chosen = HardAugment(views)(model, IMAGES)

    again = Views(arguments(), seed=5)
    size = 32 if render == "direct" else 64
    small = [again.render(IMAGES, params, size) for params in again.sample_all(IMAGES, [0, 1, 0, 1])]
    small = [TF.resize(view, [32, 32], antialias=True) for view in small]  # no change if they have this size
    other, losses = copy.deepcopy(model), []
    for i, j in itertools.combinations(range(4), 2):
        (z_i, z_j) = (other.projector(other.backbone(small[k])) for k in (i, j))
        (p_i, p_j) = (other.predictor(z) for z in (z_i, z_j))
        if score == "projection_cosine":  # Algorithm 1 to the letter
            losses.append(-F.cosine_similarity(z_i, z_j))
        else:
            losses.append(-(F.cosine_similarity(p_i, z_j) + F.cosine_similarity(p_j, z_i)) / 2)
    losses = torch.stack(losses, dim=1)
    assert torch.equal(chosen.pair, losses.argmax(dim=1))
    assert len(set(chosen.pair.tolist())) > 1  # images differ in their hardest pair
    highest, mean = losses.max(1).values.mean().item(), losses.mean().item()
    expected = {"selection_gap": highest - mean, "selection_pair_score": highest, "selection_mean_score": mean}
    expected["selection_changed"] = sum(pair != 0 for pair in chosen.pair.tolist()) / len(IMAGES)
    assert {name: value.item() for name, value in chosen.scalars().items()} == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_projections_score_as_predictions_do_unless_there_is_a_predictor(method):
    torch.manual_seed(0)
    built = SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args).train()
    augments = [HardAugment(Views(arguments(selection_score=s), seed=5)) for s in ("cosine", "projection_cosine")]
    by_prediction, by_projection = (augment.compare(built, augment.plan(IMAGES)).scores for augment in augments)
    has_predictor = method in ("simsiam", "byol", "distill")  # distill: projections against the teacher's features
    assert torch.allclose(by_prediction, by_projection, atol=1e-5) != has_predictor


@pytest.mark.parametrize("chain", ["simclr", "randaugment"])
def test_the_chosen_views_have_the_parameters_that_were_compared(model, chain):
    # RandAugment ignores the probabilities of SimCLR's chain, so all pairs are candidates
    args = arguments(augmentation=chain, **({"blur_p": [1.0, 0.1]} if chain == "randaugment" else {}))
    views, again = Views(args, seed=9), Views(args, seed=9)
    chosen = HardAugment(views)(model, IMAGES)
    candidates = again.sample_all(IMAGES, [0, 1, 0, 1])
    pairs = list(itertools.combinations(range(4), 2))
    assert len(set(chosen.pair.tolist())) > 1
    full = views.render(IMAGES, chosen.first), views.render(IMAGES, chosen.second)
    for n, pair in enumerate(chosen.pair.tolist()):
        for side, candidate in enumerate(pairs[pair]):
            torch.testing.assert_close(full[side][n], again.render(IMAGES, candidates[candidate])[n])


@pytest.mark.parametrize("changes", [{}, {"blur_p": (1.0, 0.1)}, {"augmentation": "randaugment"}], ids=str)
@pytest.mark.parametrize(("render", "size"), [("direct", 32), ("direct", 48), ("downsample", 32)])
def test_views_of_the_compared_size_are_not_rendered_again(model, changes, render, size, monkeypatch):
    views = Views(arguments(selection_render=render, **changes), seed=5)
    views.resolution = size
    chosen = HardAugment(views)(model, IMAGES)
    expected = views.render_all(IMAGES, [chosen.first, chosen.second], size)
    rendered, render_all = [], views.render_all
    monkeypatch.setattr(views, "render_all", lambda *args: rendered.append(args) or render_all(*args))
    shown = chosen.render(views, IMAGES, size)
    assert torch.equal(torch.stack([shown["first"], shown["second"]]), expected)
    assert shown["first"].stride() == expected[0].stride(), "or a compiled network is compiled again"
    assert len(rendered) == (0 if (render, size) == ("direct", 32) else 1)


def test_sampling_does_not_depend_on_the_selection(model):
    hard, none = Views(arguments(num_views=2), seed=1), Views(arguments(num_views=2, selection="none"), seed=1)
    first, second = HardAugment(hard)(model, IMAGES), HardAugment(none)(model, IMAGES)
    assert torch.equal(first.first.box, second.first.box) and torch.equal(first.second.box, second.second.box)
    assert torch.equal(hard.sample(IMAGES).box, none.sample(IMAGES).box)


def test_random_selection_chooses_each_pair_about_equally_without_a_forward_pass(model):
    views = Views(arguments(selection="random"), seed=2)
    images = IMAGES.repeat(75, 1, 1, 1)
    chosen = HardAugment(views)(None, images)
    counts = torch.bincount(chosen.pair, minlength=6)
    assert (counts - 100).abs().max() < 40 and chosen.scalars() == {}


def test_hard_pairs_have_a_higher_loss_than_random_pairs(model):
    photograph = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
    patches = photograph.unfold(1, 64, 64).unfold(2, 64, 64).reshape(3, 64, 64, 64).transpose(0, 1).contiguous()
    losses = []
    for selection in ("hard", "random"):
        views = Views(arguments(selection=selection, num_views=6, selection_resolution=64), seed=3)
        with torch.no_grad(), frozen_running_stats(model):
            chosen = HardAugment(views)(model, patches)
            first, second = (views.render(patches, side) for side in (chosen.first, chosen.second))
            losses.append(model(first, second)["loss"].mean())
    assert losses[0] > losses[1]


def test_a_pair_has_one_view_of_each_kind_if_the_kinds_differ(model):
    views = Views(arguments(blur_p=[1.0, 0.0]))
    augment = HardAugment(views)
    assert augment.pairs == [(0, 1), (0, 3), (2, 1), (2, 3)]
    chosen = augment(model, IMAGES)
    assert (chosen.first.sigma > 0).all() and not (chosen.second.sigma > 0).any()


@pytest.mark.parametrize("capable", [True, False])
def test_compared_in_bf16_if_the_device_has_it(model, capable, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable})
    augments = [HardAugment(Views(arguments(selection_precision=name), seed=6)) for name in ("training", "bf16")]
    exact, rough = (augment.compare(model, augment.plan(IMAGES)).scores for augment in augments)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0)
    assert torch.equal(exact, rough) != capable


def test_a_weight_is_converted_to_bf16_once_for_all_views(model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    augment, converted = HardAugment(Views(arguments(selection_precision="bf16"))), []
    weight = next(model.backbone.parameters())

    class Conversions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
                converted.append(args[0].data_ptr())
            return func(*args, **(kwargs or {}))

    plan = augment.plan(IMAGES)
    with Conversions():
        augment.compare(model, plan)
    assert converted.count(weight.data_ptr()) == 1
    assert len(converted) > len(plan.candidates)  # the views themselves too


@pytest.mark.parametrize("selection", ["hard", "random"])
def test_extra_targets_are_the_keys_of_the_small_views_not_chosen(model, selection):
    views = Views(arguments(selection=selection, extra_targets=True), seed=4)
    chosen = HardAugment(views)(model, IMAGES)
    again = Views(arguments(selection=selection), seed=4)
    candidates = again.sample_all(IMAGES, [0, 1, 0, 1])
    with torch.no_grad(), frozen_running_stats(model):
        keys = [model.embed(again.render(IMAGES, c, again.args.selection_resolution))[1] for c in candidates]
    pairs = list(itertools.combinations(range(4), 2))
    for n, pair in enumerate(chosen.pair.tolist()):
        rest = [i for i in range(4) if i not in pairs[pair]]
        torch.testing.assert_close(chosen.extra[n], torch.stack([keys[i][n] for i in rest]))


def test_the_loss_with_extra_targets_by_hand(model):
    """SimSiam: the mean of the pair's loss and, for each extra target z, of ½ [D(p1, z) + D(p2, z)]."""
    first, second, extra = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32), torch.randn(4, 2, 32)
    with torch.no_grad(), frozen_running_stats(model):
        loss = model(first, second, extra)["loss"]
        (p1, z1), (p2, z2) = model.embed(first), model.embed(second)
    cos = torch.nn.CosineSimilarity(dim=1)
    terms = [-(cos(p1, z2) + cos(p2, z1)) / 2] + [-(cos(p1, z) + cos(p2, z)) / 2 for z in extra.unbind(1)]
    torch.testing.assert_close(loss, sum(terms) / 3)


def test_extra_targets_without_an_extra_view_are_rejected():
    for wrong in ({"num_views": 2}, {"selection": "none", "num_views": 2}):
        with pytest.raises(ValueError, match=r"extra_targets is true .* leave no extra view"):
            arguments(extra_targets=True, **wrong).check()


def test_cosine_scores_by_hand():
    a, b, c = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([-3.0, 0.0])
    vectors = tuple(v[None] for v in (a, b, c))
    scores = pair_cosines(vectors, vectors, [(0, 1), (0, 2), (1, 2)])
    torch.testing.assert_close(scores, torch.tensor([[0.0, 1.0, 0.0]]))


def test_batch_statistics_are_restored_after_an_error(model):
    with pytest.raises(RuntimeError, match="midway"), frozen_running_stats(model):
        raise RuntimeError("midway")
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(m.track_running_stats for m in norms)


def test_the_framed_pairs_are_the_hardest_of_the_views_that_are_shown(model):
    """By a loop over the views that `tile_views` samples; neither the model nor the random state changes."""
    args = arguments(num_views=4, selection_score="cosine")
    images, aspect = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8), torch.tensor([1.0, 0.8, 1.5])
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    shown = shown_pairs(model.eval(), images, aspect, args, magnitude=4.0, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    views = Views(args, model.pixel_mean, model.pixel_std, seed=3)
    views.magnitude = 4.0
    candidates = views.sample_all(images, [0, 1, 0, 1], aspect)
    with torch.no_grad(), frozen_running_stats(model.train()):
        embedded = [model.embed(views.render(images, one, args.selection_resolution)) for one in candidates]

    def cosine(image, i, j):
        (p, _), (_, z) = embedded[i], embedded[j]
        return F.cosine_similarity(p[image], z[image], dim=0).item()

    for image, chosen in enumerate(shown):
        pairs = itertools.combinations(range(4), 2)
        assert chosen == min(pairs, key=lambda pair: cosine(image, *pair) + cosine(image, *pair[::-1]))
