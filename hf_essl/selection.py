"""Hard Augment (Sec. 3.3): of m views of an image, the pair with the highest loss trains."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_essl.acceleration import batch_statistics
from hf_essl.arguments import ViewArguments, cpu_has_bf16
from hf_essl.methods.base import Pair, SSLModel, full_precision
from hf_essl.views import ViewParams, Views


class Selection(NamedTuple):
    """The pair of views that trains, and what its choice said."""

    first: ViewParams
    second: ViewParams
    pair: Tensor | None
    """N, int64: position of the chosen pair in `HardAugment.pairs`; None where there was no choice."""
    gap: Tensor | None
    """Scalar on the device: mean score of the chosen pairs less that of a random pair."""
    score: Tensor | None = None
    """Scalar on the device: mean score of the chosen pairs; less `gap`, that of all pairs."""
    changed: Tensor | None = None
    """Scalar on the device: share of the images whose chosen pair is not that of their first two views."""
    extra: Tensor | None = None
    """N x (m - 2) x D: keys of the small views that were not chosen, where `extra_targets` asks for them."""


class HardAugment:
    """Samples m views of each image and chooses the two that train (Algorithm 1, Eq. 10).

    The m views are rendered at r_sel and compared by one forward pass of the student without gradient; the
    winners are rendered at full size later, from the same parameters. The pass leaves no trace: batch statistics in
    BatchNorm, no running statistics, no teacher, no queue. Algorithm 1 prints `f(vs)` where `f(vs_small)` is meant.

    Where first and second views are drawn differently (BYOL, DINO), a pair holds one of each kind.

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
        """Chooses a pair for each image.

        Args:
            model: the unwrapped student, in train mode.
            images: uint8 N x 3 x H x W.
        """
        candidates = self.views.sample_all(images, self.kinds)
        small = self.small_views(images, candidates) if self.args.has_selection_pass else []
        return self.choose(model, candidates, small)

    def choose(self, model: SSLModel, candidates: list[ViewParams], small: Iterable[Tensor]) -> Selection:
        """Chooses among m candidates of N views by their small views, N x 3 x r_sel x r_sel each."""
        if self.args.selection == "none":
            return Selection(candidates[0], candidates[1], None, None)
        queries, keys = self.embed(model, small) if self.args.has_selection_pass else ((), ())
        gap = score = changed = None
        if self.args.selection == "random":
            with self.views.random_stream():
                pair = torch.randint(len(self.pairs), (len(candidates[0]),))
        else:
            scores = self.score(model, queries, keys)
            pair, score = scores.argmax(dim=1), scores.max(dim=1).values.mean()
            gap, changed = score - scores.mean(), (pair != 0).float().mean()
            pair = pair.cpu()  # the one wait for the device: the parameters live on the host
        chosen = torch.tensor(self.pairs)[pair]  # N x 2
        first, second = (ViewParams.choose(candidates, side) for side in chosen.unbind(dim=1))
        extra = left_over(keys, chosen) if self.args.extra_targets else None
        return Selection(first, second, pair, gap, score, changed, extra)

    @torch.no_grad()
    def embed(self, model: SSLModel, small: Iterable[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        """Queries and keys of m views, one BatchNorm batch each: two tuples of N x D."""
        with batch_statistics(model):
            embedded = [self._embed_view(model, view) for view in small]
        queries, keys = zip(*embedded, strict=True)
        return queries, keys

    def _embed_view(self, model: SSLModel, view: Tensor) -> Pair:
        if self.args.selection_precision == "training" or (view.device.type == "cpu" and not cpu_has_bf16()):
            return model.embed(view)
        with torch.autocast(view.device.type, torch.bfloat16):
            return model.embed(view)

    def small_views(self, images: Tensor, candidates: list[ViewParams]) -> Iterable[Tensor]:
        """m views at r_sel, N x 3 x r_sel x r_sel each: rendered so, or in full and resized, as Algorithm 1 has it."""
        size = self.args.selection_resolution
        if self.args.selection_render == "direct":
            return self.views.render_all(images, candidates, size)
        full = (self.views.render(images, params) for params in candidates)
        return (F.interpolate(view, size=(size, size), mode="bilinear", antialias=True) for view in full)

    @torch.no_grad()
    def score(self, model: SSLModel, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...]) -> Tensor:
        """How hard each pair is, N x pairs in the order of `pairs`: the loss that it would bring."""
        score = pair_losses if self.args.selection_score == "loss" else pair_cosines
        return score(model, queries, keys, self.pairs)


def selection_scalars(chosen: Selection) -> dict[str, Tensor]:
    """What a choice says to the log, scalars on the device; nothing where the pair was not chosen by its score.

    `selection_score` is the mean over the chosen pairs, `selection_mean_score` over all pairs; `selection_gap` is the
    former less the latter. `selection_changed` is the share of images that train on other than their first two views.
    """
    if chosen.score is None or chosen.gap is None or chosen.changed is None:
        return {}
    return {
        "selection_gap": chosen.gap,
        "selection_score": chosen.score,
        "selection_mean_score": chosen.score - chosen.gap,
        "selection_changed": chosen.changed,
    }


def left_over(keys: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
    """The keys of the views that are in no chosen pair: m of N x D and positions N x 2 to N x (m - 2) x D."""
    views = torch.arange(len(keys))
    free = (views != chosen[:, :1]) & (views != chosen[:, 1:])  # N x m
    positions = free.nonzero()[:, 1].view(len(chosen), -1).to(keys[0].device)  # N x (m - 2)
    stacked = torch.stack(keys, dim=1)
    return stacked.gather(1, positions[:, :, None].expand(-1, -1, stacked.shape[-1]))


def pair_cosines(model: SSLModel, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], pairs) -> Tensor:
    """½ [D(q_i, k_j) + D(q_j, k_i)] with D the negative cosine, one m x m product an image: N x pairs."""
    with full_precision(queries[0]):
        normal_queries = F.normalize(torch.stack(queries, dim=1).float(), dim=-1)  # N x m x D
        normal_keys = F.normalize(torch.stack(keys, dim=1).float(), dim=-1)
        cosines = torch.bmm(normal_queries, normal_keys.transpose(1, 2))  # N x m x m
    first, second = (list(side) for side in zip(*pairs, strict=True))
    return -(cosines[:, first, second] + cosines[:, second, first]) / 2


def pair_losses(model: SSLModel, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], pairs) -> Tensor:
    """The method's own loss of each image and pair, with the student's keys for targets: N x pairs."""
    return torch.stack([model.loss((queries[i], queries[j]), (keys[i], keys[j])) for i, j in pairs], dim=1)
