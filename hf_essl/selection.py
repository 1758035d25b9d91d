"""Hard Augment (Sec. 3.3): of m views of each image, train on the pair with the highest loss.

A selection has three parts, plan → compare → pair: sample m views and render them small, score the pairs with the
student, and keep the parameters of the hardest pair. `HardAugment.__call__` does all three.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hf_essl.config import ViewArguments, cpu_has_bf16
from hf_essl.methods import SSLModel
from hf_essl.methods.base import full_precision
from hf_essl.methods.tokens import patch_count
from hf_essl.views import LOCAL, ViewParams, Views
from hf_essl.views.tokens import kept_tokens


class Plan(NamedTuple):
    """m sampled views of N images."""

    candidates: list[ViewParams]
    small: Iterable[Tensor] | None  # at r_sel, N x 3 x r_sel x r_sel each; None without a selection pass
    local: tuple[ViewParams, ...] = ()  # the local views, which are not compared


class Comparison(NamedTuple):
    """The student's keys of the m small views, N x D each, and how hard the pairs are."""

    keys: tuple[Tensor, ...]
    scores: Tensor | None  # N x pairs, higher for a harder pair; None with random selection


class Selection(NamedTuple):
    """The two views of each image that train, and how they were chosen."""

    first: ViewParams
    second: ViewParams
    pair: Tensor | None = None  # N, int64: indices into `HardAugment.pairs`; None without a choice
    scores: Tensor | None = None  # N x pairs, of the comparison
    extra: Tensor | None = None  # N x (m - 2) x D: keys of the other small views, with `extra_targets`
    local: tuple[ViewParams, ...] = ()  # the local views, whatever the pair
    rendered: Tensor | None = None  # 2 x N x 3 x r x r, if the compared views have the current resolution r

    def render(self, views: Views, images: Tensor, size: int | None = None) -> dict[str, Tensor]:
        """What the model's forward takes: the pair, N x 3 x r x r each, and n local views, n x N x 3 x s x s.

        Args:
            size: r in pixels; by default the current resolution.
        """
        if self.rendered is not None and self.rendered.shape[-1] == (size or views.resolution):
            first, second = self.rendered
        else:
            first, second = views.render_all(images, [self.first, self.second], size)
        rendered = {"first": first, "second": second}
        if self.local:
            local_size = views.args.local_size(size or views.resolution)
            rendered["local"] = views.render_all(images, self.local, local_size)
        return rendered if self.extra is None else {**rendered, "extra": self.extra}

    def scalars(self) -> dict[str, Tensor]:
        """Mean scores and the share of images that do not train on the first pair; {} without scores."""
        if self.scores is None:
            return {}
        score = self.scores.max(dim=1).values.mean()
        gap = score - self.scores.mean()
        return {
            "selection_gap": gap,
            "selection_pair_score": score,
            "selection_mean_score": score - gap,
            "selection_changed": (self.scores.argmax(dim=1) != 0).float().mean(),
        }


class HardAugment:
    """Samples m views of each image and chooses the two that train (Algorithm 1, Eq. 10).

    The student compares the m views at r_sel in one forward pass without gradient; the chosen two are rendered at full
    size later, from the same parameters. The pass changes no state: BatchNorm uses batch statistics and keeps its
    running statistics, and teacher and queue are not used. Algorithm 1 prints `f(vs)`, which must be `f(vs_small)`.
    """

    pairs: list[tuple[int, int]]  # positions; if first and second views differ (BYOL, DINO), one of each kind

    def __init__(self, views: Views):
        self.views, self.args = views, views.args
        self.kinds = [i % 2 for i in range(self.args.num_views)]
        self.pairs = list(itertools.combinations(range(self.args.num_views), 2))
        if views.asymmetric:
            mixed = [(i, j) for i, j in self.pairs if self.kinds[i] != self.kinds[j]]
            self.pairs = [(i, j) if self.kinds[i] == 0 else (j, i) for i, j in mixed]

    def __call__(self, model: SSLModel, images: Tensor, aspect: Tensor | None = None) -> Selection:
        """Chooses a pair of views for each image.

        Args:
            model: the unwrapped student, in train mode.
            images: uint8 N x 3 x H x W.
            aspect: N on the host, width / height of the whole images; see `Views.sample`.
        """
        plan = self.plan(images, aspect)
        return self.pair(plan, self.compare(model, plan))

    def plan(self, images: Tensor, aspect: Tensor | None = None) -> Plan:
        """Samples m views of each image and its local views; for a selection pass, renders the m views at r_sel."""
        sampled = self.views.sample_all(images, [*self.kinds, *[LOCAL] * self.args.local_views], aspect)
        candidates, local = sampled[: len(self.kinds)], tuple(sampled[len(self.kinds) :])
        small = self._render_small(images, candidates) if self.args.needs_selection_pass else None
        return Plan(candidates, small, local)

    def _render_small(self, images: Tensor, candidates: list[ViewParams]) -> Iterable[Tensor]:
        size = self.args.selection_resolution
        if self.args.selection_render == "direct":
            return self.views.render_all(images, candidates, size)
        full = (self.views.render(images, params) for params in candidates)  # as in Algorithm 1
        return (F.interpolate(view, size=(size, size), mode="bilinear", antialias=True) for view in full)

    def compare(self, model: SSLModel, plan: Plan) -> Comparison | None:
        """Embeds the small views, one BatchNorm batch per view, and scores the pairs; None without small views."""
        if plan.small is None:
            return None
        with torch.no_grad(), frozen_running_stats(model):
            kept = self._kept(model, plan)
            with self._precision(next(model.parameters()).device.type):
                embedded = [model.embed_tokens(*small) for small in zip(plan.small, kept, strict=True)]
            queries, keys = zip(*embedded, strict=True)
            if self.args.selection != "hard":
                return Comparison(keys, None)
            score = self.args.selection_score
            if score == "projection_cosine" or (score == "cosine" and not model.compares_own_key):
                sides = queries if score == "cosine" else keys
                return Comparison(keys, pair_cosines(sides, keys, self.pairs))
            losses = [model.loss((queries[i], queries[j]), (keys[i], keys[j])) for i, j in self.pairs]
            return Comparison(keys, torch.stack(losses, dim=1))

    def pair(self, plan: Plan, comparison: Comparison | None = None) -> Selection:
        """Chooses the hardest pair of each image, or a random one without scores."""
        candidates = plan.candidates
        if self.args.selection == "none":
            return Selection(candidates[0], candidates[1], local=plan.local)
        keys, scores = comparison or (None, None)
        if scores is None:
            with self.views.random_stream():
                pair = torch.randint(len(self.pairs), (len(candidates[0]),))
        else:
            pair = scores.argmax(dim=1).cpu()  # the only wait for the device: the parameters are on the host
        chosen = torch.tensor(self.pairs)[pair]  # N x 2
        first, second = (ViewParams.gather(candidates, side) for side in chosen.unbind(dim=1))
        extra = keys_not_chosen(keys, chosen) if keys is not None and self.args.extra_targets else None
        small, rendered = plan.small, None
        if isinstance(small, Tensor) and small.shape[-1] == self.views.resolution:
            rendered = take_views(small, chosen)
        return Selection(first, second, pair, scores, extra, plan.local, rendered)

    def _kept(self, model: SSLModel, plan: Plan) -> Sequence[Tensor | None]:
        """The patch tokens of each of the m small views, N x K; None for all."""
        share, everything = self.args.selection_tokens, [None] * len(plan.candidates)
        if share >= 1:
            return everything
        patches, device = patch_count(model.backbone, self.args.selection_resolution), next(model.parameters()).device
        kept = self.views.kept_tokens(plan.candidates, patches, device, share)
        return everything if kept is None else kept.unbind(dim=1)

    def _precision(self, device: str) -> AbstractContextManager:
        """One context for all views, because autocast converts the weights again in each."""
        if self.args.selection_precision == "training" or (device == "cpu" and not cpu_has_bf16()):
            return nullcontext()
        return torch.autocast(device, torch.bfloat16)


def seen_tokens(views: Views, model: SSLModel, chosen: Selection, seed: int) -> dict[str, Tensor]:
    """Which patch tokens of the chosen views student and teacher see, as `SSLModel.forward` takes them; {} for all.

    Args:
        seed: of the teacher's tokens, the same in all processes.
    """
    args, device = views.args, next(model.parameters()).device
    if min(views.tokens, args.teacher_tokens) >= 1:
        return {}
    patches = patch_count(model.backbone, views.resolution)
    teacher = kept_tokens(torch.tensor([seed], device=device), patches, args.teacher_tokens)
    found = {
        "tokens": views.kept_tokens([chosen.first, chosen.second], patches, device),
        "teacher_tokens": teacher if args.teacher_tokens < 1 else None,
    }
    return {name: kept for name, kept in found.items() if kept is not None}


def plain_views(
    views: Views, images: Tensor, size: int | None = None, aspect: Tensor | None = None
) -> dict[str, Tensor]:
    """What the model's forward takes in the plain recipe: two views and the local ones, without a selection."""
    first, second, *local = views.sample_all(images, [0, 1, *[LOCAL] * views.args.local_views], aspect)
    return Selection(first, second, local=tuple(local)).render(views, images, size)


def shown_pairs(
    model: SSLModel, images: Tensor, aspect: Tensor, args: ViewArguments, magnitude: float, seed: int = 0
) -> list[tuple[int, int]]:
    """The positions of the two views that Hard Augment chooses for each image, among those that `tile_views` shows.

    The N images are one batch. Neither the model nor torch's random state changes.

    Args:
        model: the unwrapped student.
        images: uint8 N x 3 x S x S, with N at least 2.
        magnitude, seed: those of `tile_views`.
    """
    views = Views(args, model.pixel_mean, model.pixel_std, seed)
    views.magnitude = magnitude
    hard_augment, was_training = HardAugment(views), model.training
    with torch.random.fork_rng():
        model.train()
        chosen = hard_augment(model, images, aspect)
        model.train(was_training)
    assert chosen.pair is not None, "the selection is hard"
    return [hard_augment.pairs[index] for index in chosen.pair.tolist()]


@contextmanager
def frozen_running_stats(model: nn.Module) -> Iterator[None]:
    """A context in which BatchNorm uses batch statistics, as in training, without updating its running statistics."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def take_views(small: Tensor, chosen: Tensor) -> Tensor:
    """The chosen ones of m views of each image: m x N x 3 x r x r and positions N x 2, on the host, to 2 x N x …

    They are bit for bit those that rendering the pair gives.
    """
    positions = chosen.T.contiguous().to(small.device, non_blocking=True)  # the result has its layout
    return small[positions, torch.arange(small.shape[1], device=small.device)]


def keys_not_chosen(keys: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
    """The keys of the other views: m tensors N x D and positions N x 2 to N x (m - 2) x D."""
    views = torch.arange(len(keys))
    free = (views != chosen[:, :1]) & (views != chosen[:, 1:])  # N x m
    positions = free.nonzero()[:, 1].view(len(chosen), -1).to(keys[0].device)  # N x (m - 2)
    stacked = torch.stack(keys, dim=1)
    return stacked.gather(1, positions[:, :, None].expand(-1, -1, stacked.shape[-1]))


def pair_cosines(queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], pairs: list[tuple[int, int]]) -> Tensor:
    """½ [D(q_i, k_j) + D(q_j, k_i)] of each image and pair, with D the negative cosine: m x N x D to N x pairs."""
    with full_precision(queries[0]):
        unit_queries = F.normalize(torch.stack(queries, dim=1).float(), dim=-1)  # N x m x D
        unit_keys = F.normalize(torch.stack(keys, dim=1).float(), dim=-1)
        cosines = torch.bmm(unit_queries, unit_keys.transpose(1, 2))  # N x m x m
    first, second = (list(side) for side in zip(*pairs, strict=True))
    return -(cosines[:, first, second] + cosines[:, second, first]) / 2
