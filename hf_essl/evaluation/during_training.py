"""The evaluation of a run while it trains: online probe, kNN, view retrieval, and metrics that show a collapse."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.common import evenly_spaced
from hf_essl.config import SSLTrainingArguments
from hf_essl.data import NO_LABEL, ImageDataset
from hf_essl.evaluation.features import Transform, class_targets, labeled_indices
from hf_essl.evaluation.knn import knn_accuracy
from hf_essl.evaluation.linear_probe import zero_linear
from hf_essl.evaluation.metrics import feature_std, rankme
from hf_essl.evaluation.nearest import Neighbors, find_neighbors
from hf_essl.evaluation.retrieval import measure_retrieval
from hf_essl.methods import SSLModel
from hf_essl.methods.base import full_precision
from hf_essl.methods.distributed import gather

METRICS = ("knn_accuracy", "probe_accuracy", "retrieval", "feature_std", "rankme")
"""What `evaluate_features` may measure."""
UNLABELED_IMAGES = 10_000  # at most, where only the training images can be evaluated; RankMe needs no more


class OnlineProbe(nn.Module):
    """A linear classifier with its own optimizer, trained alongside the backbone on detached features.

    It draws no random numbers, so training is bit for bit the same without it. Features are standardized by running
    statistics (a BatchNorm without affine parameters) and divided by sqrt(D), so that one learning rate suits every
    backbone. The learning rate is constant because the features keep changing. With several processes, each step uses
    the features of all, and all probes stay equal; batches must then have one size (`dataloader_drop_last`).

    Args:
        num_features: size of the backbone's features, D.
        classes: the labels that occur, sorted, or their number C if they are 0 to C - 1.
    """

    classes: Tensor

    def __init__(self, num_features: int, classes: Tensor | int):
        super().__init__()
        known = torch.arange(classes) if isinstance(classes, int) else classes
        self.register_buffer("classes", known, persistent=False)
        self.norm = nn.BatchNorm1d(num_features, affine=False)
        self.linear = zero_linear(num_features, len(known))
        self.optimizer = torch.optim.SGD(self.linear.parameters(), lr=1.0, momentum=0.9)

    @classmethod
    def for_model(cls, model: SSLModel, images: ImageDataset, device: torch.device) -> "OnlineProbe":
        """A probe for a model and its training images. Raises ValueError if they have no labels."""
        if images.labels is None:
            raise ValueError(
                f"online_probe is on, but the training images of {images.name} have no labels (a stream's never do); "
                f"set label_column, or turn online_probe off"
            )
        return cls(model.num_features, images.labels[images.labels != NO_LABEL].unique()).to(device)

    def forward(self, features: Tensor) -> Tensor:
        """Scores of the classes in float32: B x D to B x C."""
        with full_precision(features):
            features = self.norm(features.detach().float())
            return self.linear(features / features.shape[1] ** 0.5)

    def update(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One optimizer step of the probe; no gradient reaches the backbone.

        Args:
            features: of the backbone, B x D with B at least 2, of any floating dtype.
            labels: B classes; images with `NO_LABEL` are ignored.

        Returns `probe_loss`, the mean cross-entropy, and `probe_train_accuracy`, top-1 in percent, both from before
        the step. Scalars over all processes, on the device; reading them waits for it.
        """
        features, labels = gather(features.detach().float()), gather(labels.to(features.device))
        self.train()
        with torch.enable_grad(), full_precision(features):  # autocast would affect the backward pass too
            scores = self(features)
            labeled = (labels != NO_LABEL).sum().clamp(min=1)
            targets = class_targets(labels, self.classes)
            loss = F.cross_entropy(scores, targets, reduction="sum") / labeled
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        accuracy = 100 * (scores.argmax(dim=1) == targets).sum() / labeled
        return {"probe_loss": loss.detach(), "probe_train_accuracy": accuracy}

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """The classes of B x D features, B; changes nothing, not even the running statistics."""
        self.eval()
        return self.classes[self(features.to(self.linear.weight.device)).argmax(dim=1)]

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Top-1 accuracy in percent, [0, 100], on B x D features and their B classes."""
        return 100 * (self.predict(features).cpu() == labels.cpu()).float().mean().item()

    def get_extra_state(self) -> dict:
        """The optimizer's state, so that `state_dict` contains everything that a resumed run needs."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)


@contextmanager
def captured_features(projector: nn.Module) -> Iterator[list[Tensor]]:
    """Collects, detached, the inputs of a projector: the backbone's features, B x D per view.

    The hook is on the projector because a compiled backbone would skip one.
    """
    seen: list[Tensor] = []
    handle = projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def check_neighbors(queries: ImageDataset | None, bank: ImageDataset | None, k: int) -> None:
    """Raises ValueError before a run whose kNN evaluation has fewer labeled images in its bank than `k`."""
    if queries is None or bank is None or bank is queries:
        return
    count = len(bank)  # type: ignore[arg-type]
    if count >= k and bank.has_known_labels and bank.labels is not None:
        count = int((bank.labels != NO_LABEL).sum())
    if count < k:
        raise ValueError(f"knn_k is {k}, but only {count} training images can vote; set knn_k: {count} or lower")


class Evaluation(NamedTuple):
    """The metrics of an evaluation by name, and what the backbone finds similar, if there are images to compare."""

    metrics: dict[str, float]
    neighbors: Neighbors | None


def evaluate_features(
    extract: Callable[..., tuple[Tensor, Tensor | None]],
    queries_from: ImageDataset,
    bank_from: ImageDataset | None,
    args: SSLTrainingArguments,
    accelerator: Accelerator,
    probe: OnlineProbe | None = None,
    fixed_views: Callable[[int], Transform] | None = None,
) -> Evaluation:
    """View retrieval, feature std and RankMe of the query images and, if both datasets have labels, accuracies.

    Retrieval and accuracies are in percent. If the query images are the bank themselves, the training images, there
    is no kNN accuracy, and at most 10,000 of them are used, evenly spaced.

    Args:
        extract: returns the features, N x D, and labels, N, of a dataset; it accepts `indices`, `kept` and
            `transform` of `extract_features`.
        bank_from: the neighbors for the kNN accuracy.
        args: `knn_k` and `knn_temperature`.
        probe: the classifier that trains alongside the backbone.
        fixed_views: the views of the retrieval, see `measure_retrieval`; without it there is none.
    """
    is_bank = bank_from is None or bank_from is queries_from
    kept: list[int] = []
    queries, labels = extract(queries_from, indices=query_indices(queries_from, bank_from), kept=kept)
    metrics = {"feature_std": feature_std(queries).item(), "rankme": rankme(queries)}
    if fixed_views is not None:
        metrics["retrieval"] = measure_retrieval(extract, queries_from, fixed_views)
    neighbors = find_neighbors(queries, kept)
    if labels is not None:
        queries, labels = _labeled(queries, labels)
        if probe is not None:
            metrics["probe_accuracy"] = probe.accuracy(queries, labels)
        if bank_from is not None and not is_bank:
            metrics |= _knn(extract, bank_from, queries, labels, args, accelerator)
    return Evaluation(metrics, neighbors)


def query_indices(queries: ImageDataset, bank: ImageDataset | None) -> list[int]:
    """The query images that are evaluated: all, or some of the training images."""
    is_bank = bank is None or bank is queries
    return evenly_spaced(len(queries), UNLABELED_IMAGES if is_bank else None)  # type: ignore[arg-type]


def _knn(
    extract: Callable[..., tuple[Tensor, Tensor | None]],
    bank_from: ImageDataset,
    queries: Tensor,
    query_labels: Tensor,
    args: SSLTrainingArguments,
    accelerator: Accelerator,
) -> dict[str, float]:
    bank, bank_labels = extract(bank_from, indices=labeled_indices(bank_from))
    if bank_labels is None:
        return {}
    features, votes = (*_labeled(bank, bank_labels), queries, query_labels), (args.knn_k, args.knn_temperature)
    return {"knn_accuracy": knn_accuracy(*features, *votes, accelerator=accelerator)}


def _labeled(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with a label; without a copy if all have one."""
    rows = labels != NO_LABEL
    return (features, labels) if rows.all() else (features[rows], labels[rows])
