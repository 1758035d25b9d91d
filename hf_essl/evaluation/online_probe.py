"""Online linear probe: a linear classifier that learns beside the backbone, from features that carry no gradient."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.data import ImageDataset
from hf_essl.methods import SSLModel
from hf_essl.methods.base import full_precision
from hf_essl.methods.distributed import gather

logger = logging.getLogger(__name__)

PROBE = "online_probe.pt"
"""File of a checkpoint that holds the probe."""


class OnlineProbe(nn.Module):
    """A linear classifier with an optimizer of its own, one step for each training batch.

    It reads the backbone's features and changes nothing: they are detached, no random number is drawn, and training
    is bit for bit what it is without a probe. Features are standardised by running statistics (a BatchNorm without
    affine parameters) and divided by sqrt(D), so that one learning rate suits every backbone and size. Under several
    processes each step takes the features of all of them, so that all probes stay equal and equal to that of one
    process; batches must then be of one size, as `dataloader_drop_last` makes them.

    Args:
        num_features: size of the backbone's features, D.
        num_classes: C.
        learning_rate: of SGD, constant: the features never come to rest.
        momentum: of SGD.

    Raises:
        ValueError: for a size below 1 or a learning rate of 0 or below.
    """

    def __init__(self, num_features: int, num_classes: int, learning_rate: float = 1.0, momentum: float = 0.9):
        super().__init__()
        if num_features < 1 or num_classes < 1:
            raise ValueError(f"num_features and num_classes are {num_features} and {num_classes}; both are at least 1")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate of the probe is {learning_rate}; it must be above 0, such as 1")
        self.norm = nn.BatchNorm1d(num_features, affine=False)
        self.linear = nn.utils.skip_init(nn.Linear, num_features, num_classes)  # it would draw random numbers
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.optimizer = torch.optim.SGD(self.linear.parameters(), lr=learning_rate, momentum=momentum)

    @classmethod
    def beside(cls, model: SSLModel, images: ImageDataset, device: torch.device) -> OnlineProbe:
        """A probe for a model and the labelled images that it trains on.

        Raises:
            ValueError: for images without labels, as those of a stream are.
        """
        if images.labels is None:
            raise ValueError(
                f"online_probe is on, but the training images of {images.name} come without labels (a stream's always "
                f"do); name their label_column, or drop online_probe"
            )
        return cls(model.num_features, int(images.labels.max()) + 1).to(device)

    def resume(self, path: Path) -> None:
        """Goes on from what a checkpoint saved; anew, with a warning, where that run had no probe."""
        if path.is_file():
            self.load_state_dict(torch.load(path, map_location=self.linear.weight.device, weights_only=True))
        else:
            logger.warning("%s is not there: the online probe starts anew", path)

    def forward(self, features: Tensor) -> Tensor:
        """Scores of the classes in float32: B x D to B x C."""
        with full_precision(features):
            features = self.norm(features.detach().float())
            return self.linear(features / features.shape[1] ** 0.5)

    def update(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step on a batch; the probe learns, the backbone does not.

        Args:
            features: of the backbone, B x D with B at least 2, of any floating dtype.
            labels: B classes; -1 is an image without one, which is passed over.

        Returns:
            `probe_loss`, mean cross-entropy, and `probe_train_accuracy`, top-1 in percent, before the step: of views
            that the probe has not seen. Scalars on the device, over all processes; reading them waits for the device.
        """
        features, labels = gather(features.detach().float()), gather(labels.to(features.device))
        self.train()
        with torch.enable_grad(), full_precision(features):  # autocast would halve the backward pass too
            scores = self(features)
            labelled = (labels != -1).sum().clamp(min=1)
            loss = F.cross_entropy(scores, labels, ignore_index=-1, reduction="sum") / labelled
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        accuracy = 100 * (scores.argmax(dim=1) == labels).sum() / labelled
        return {"probe_loss": loss.detach(), "probe_train_accuracy": accuracy}

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """The classes of B x D features, B; nothing changes, not even the running statistics."""
        self.eval()
        return self(features.to(self.linear.weight.device)).argmax(dim=1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Top-1 accuracy in percent, [0, 100], on B x D features and their B classes."""
        return 100 * (self.predict(features).cpu() == labels.cpu()).float().mean().item()

    def get_extra_state(self) -> dict:
        """The optimizer's state, so that `state_dict` holds all that a resumed run needs."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)


@contextmanager
def captured_features(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collects, detached, what goes into a module inside: of a projector, the backbone's features, B x D a view.

    A hook on the head and not on the backbone, since a compiled backbone would leave it out.
    """
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()
