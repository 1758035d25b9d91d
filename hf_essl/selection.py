"""Hard Augment (Sec. 3.3): of m views of an image, the pair with the highest loss trains.

The path of a selection is plan → compare → pair: sample m views and render them small, score the pairs with the
student, and keep the parameters of the hardest pair. `HardAugment.__call__` is the three in one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hf_essl.config import ViewArguments, cpu_has_bf16
from hf_essl.methods import Pair, SSLModel
from hf_essl.methods.base import full_precision
from hf_essl.views import ViewParams, Views


class Plan(NamedTuple):
    """m sampled views of N images."""

    candidates: list[ViewParams]
    small: Iterable[Tensor] | None
    """The m views at r_sel, N x 3 x r_sel x r_sel each; None if the pairs are not compared."""


class Comparison(NamedTuple):
    """What the selection pass found out about the views of a plan."""

    keys: tuple[Tensor, ...]
    """m tensors N x D: the student's keys of the small views."""
    scores: Tensor | None
    """N x pairs, the larger the harder; None with random selection."""


class Selection(NamedTuple):
    """The pair of views that trains, and how it was chosen."""

    first: ViewParams
    second: ViewParams
    pair: Tensor | None = None
    """N, int64: index of the chosen pair in `HardAugment.pairs`; None if there was no choice."""
    gap: Tensor | None = None
    """Scalar on the device: mean score of the chosen pairs minus the mean score of all pairs."""
    score: Tensor | None = None
    """Scalar on the device: mean score of the chosen pairs."""
    changed: Tensor | None = None
    """Scalar on the device: share of images whose chosen pair is not their first two views."""
    extra: Tensor | None = None
    """N x (m - 2) x D: keys of the small views that were not chosen, with `extra_targets`."""

    def scalars(self) -> dict[str, Tensor]:
        """What the log shows: scalars on the device; empty if the pair was not chosen by its score."""
        if self.score is None or self.gap is None or self.changed is None:
            return {}
        return {
            "selection_gap": self.gap,
            "selection_pair_score": self.score,
            "selection_mean_score": self.score - self.gap,
            "selection_changed": self.changed,
        }


class HardAugment:
    """Samples m views of each image and chooses the two that train (Algorithm 1, Eq. 10).

    The m views are rendered at r_sel and compared by one forward pass of the student without gradient; the winners are
    rendered at full size later, from the same parameters. The pass leaves no trace: BatchNorm uses batch statistics
    and updates no running statistics, and teacher and queue stay unchanged. Algorithm 1 prints `f(vs)` where
    `f(vs_small)` is meant.

    If first and second views are drawn differently (BYOL, DINO), a pair holds one of each kind.

    Args:
        views: samples and renders the views.
        args: `selection` hard, random or none, `num_views` m, `selection_resolution` r_sel and `selection_score`.
    """

    def __init__(self, views: Views, args: ViewArguments | None = None):
        self.views = views
        self.args = args or views.args
        self.kinds = [i % 2 for i in range(self.args.num_views)]
        self.pairs: list[tuple[int, int]] = [
            (i, j)
            for i, j in itertools.combinations(range(self.args.num_views), 2)
            if not views.asymmetric or self.kinds[i] != self.kinds[j]
        ]
        if views.asymmetric:  # a first view first
            self.pairs = [(i, j) if self.kinds[i] == 0 else (j, i) for i, j in self.pairs]

    def __call__(self, model: SSLModel, images: Tensor) -> Selection:
        """Chooses a pair of views for each image.

        Args:
            model: the unwrapped student, in train mode.
            images: uint8 N x 3 x H x W.
        """
        plan = self.plan(images)
        return self.pair(plan, self.compare(model, plan))

    def plan(self, images: Tensor) -> Plan:
        """Samples m views of each image and, if they are compared, renders them at r_sel."""
        candidates = self.views.sample_all(images, self.kinds)
        return Plan(candidates, self._small_views(images, candidates) if self.args.needs_selection_pass else None)

    def compare(self, model: SSLModel, plan: Plan) -> Comparison | None:
        """Embeds the small views without gradient, one BatchNorm batch per view, and scores the pairs.

        Returns None for a plan without small views.
        """
        if plan.small is None:
            return None
        with torch.no_grad(), frozen_running_stats(model):
            queries, keys = zip(*(self._embed(model, view) for view in plan.small), strict=True)
            scores = self.score(model, queries, keys) if self.args.selection == "hard" else None
        return Comparison(keys, scores)

    def pair(self, plan: Plan, comparison: Comparison | None = None) -> Selection:
        """The two views of each image that train."""
        candidates = plan.candidates
        if self.args.selection == "none":
            return Selection(candidates[0], candidates[1])
        gap = score = changed = None
        if comparison is None or comparison.scores is None:
            with self.views.random_stream():
                pair = torch.randint(len(self.pairs), (len(candidates[0]),))
        else:
            scores = comparison.scores
            pair, score = scores.argmax(dim=1), scores.max(dim=1).values.mean()
            gap, changed = score - scores.mean(), (pair != 0).float().mean()
            pair = pair.cpu()  # the only wait for the device: the parameters are on the host
        chosen = torch.tensor(self.pairs)[pair]  # N x 2
        first, second = (ViewParams.gather(candidates, side) for side in chosen.unbind(dim=1))
        extra = left_over(comparison.keys, chosen) if comparison is not None and self.args.extra_targets else None
        return Selection(first, second, pair, gap, score, changed, extra)

    def score(self, model: SSLModel, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...]) -> Tensor:
        """How hard each pair is, N x pairs in the order of `pairs`: the loss it would give."""
        score = pair_losses if self.args.selection_score == "loss" else pair_cosines
        return score(model, queries, keys, self.pairs)

    def _small_views(self, images: Tensor, candidates: list[ViewParams]) -> Iterable[Tensor]:
        """m views at r_sel: rendered at that size, or at full size and then resized, as in Algorithm 1."""
        size = self.args.selection_resolution
        if self.args.selection_render == "direct":
            return self.views.render_all(images, candidates, size)
        full = (self.views.render(images, params) for params in candidates)
        return (F.interpolate(view, size=(size, size), mode="bilinear", antialias=True) for view in full)

    def _embed(self, model: SSLModel, view: Tensor) -> Pair:
        if self.args.selection_precision == "training" or (view.device.type == "cpu" and not cpu_has_bf16()):
            return model.embed(view)
        with torch.autocast(view.device.type, torch.bfloat16):
            return model.embed(view)


@contextmanager
def frozen_running_stats(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm uses batch statistics, as in training, but does not update its running statistics."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def left_over(keys: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
    """The keys of the views that were not chosen: m of N x D and positions N x 2 to N x (m - 2) x D."""
    views = torch.arange(len(keys))
    free = (views != chosen[:, :1]) & (views != chosen[:, 1:])  # N x m
    positions = free.nonzero()[:, 1].view(len(chosen), -1).to(keys[0].device)  # N x (m - 2)
    stacked = torch.stack(keys, dim=1)
    return stacked.gather(1, positions[:, :, None].expand(-1, -1, stacked.shape[-1]))


def pair_cosines(model: SSLModel, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], pairs) -> Tensor:
    """½ [D(q_i, k_j) + D(q_j, k_i)] with D the negative cosine, one m x m product per image: N x pairs."""
    with full_precision(queries[0]):
        normal_queries = F.normalize(torch.stack(queries, dim=1).float(), dim=-1)  # N x m x D
        normal_keys = F.normalize(torch.stack(keys, dim=1).float(), dim=-1)
        cosines = torch.bmm(normal_queries, normal_keys.transpose(1, 2))  # N x m x m
    first, second = (list(side) for side in zip(*pairs, strict=True))
    return -(cosines[:, first, second] + cosines[:, second, first]) / 2


def pair_losses(model: SSLModel, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], pairs) -> Tensor:
    """The method's own loss of each image and pair, with the student's keys as targets: N x pairs."""
    return torch.stack([model.loss((queries[i], queries[j]), (keys[i], keys[j])) for i, j in pairs], dim=1)
