"""The parameters of augmented views, independent of the pixel size, and the selection of images by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_SIZE = 224  # side in pixels of the views to which blur sigma and RandAugment's sharpness refer
JITTER_ORDER = torch.arange(4)  # brightness, contrast, saturation, hue
NEUTRAL_JITTER = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the row of `ViewParams.jitter` that changes nothing


@dataclass(frozen=True)
class ViewParams:
    """The parameters of one view of each of N images.

    They render at any resolution: boxes are fractions of the image, and the blur's sigma is that of a 224 px view.
    They stay on the host: on a GPU, the images that an operation changes could only be found by waiting for it.
    """

    box: Tensor  # N x 4: left, top, width, height of the crop
    flip: Tensor  # N, bool: flipped horizontally
    jitter: Tensor  # N x 4: factors of brightness, contrast and saturation, and the shift of the hue in turns
    grayscale: Tensor  # N, bool
    sigma: Tensor  # N: sigma of the Gaussian blur at 224 px; 0 is no blur
    solarize: Tensor  # N, bool
    operations: Tensor  # N x n, int64: indices into `randaugment.OPERATIONS`, in order; n = 0 for SimCLR's chain
    strengths: Tensor  # N x n in [-1, 1]: the strengths of these operations, as shares of their ranges
    order: Tensor  # N x 4, int64: columns of `jitter` in the order of their operations
    tokens: Tensor  # N, int64: seeds of the patch tokens that a ViT keeps, see `kept_tokens`

    @staticmethod
    def neutral(count: int, **changes: Tensor) -> "ViewParams":
        """Parameters of `count` views that show the whole image unchanged, except for the fields in `changes`."""
        never = torch.zeros(count, dtype=torch.bool)
        fields = {
            "box": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1),
            "flip": never,
            "jitter": NEUTRAL_JITTER.repeat(count, 1),
            "grayscale": never,
            "sigma": torch.zeros(count),
            "solarize": never,
            "operations": torch.empty(count, 0, dtype=torch.int64),
            "strengths": torch.empty(count, 0),
            "order": JITTER_ORDER.repeat(count, 1),
            "tokens": torch.zeros(count, dtype=torch.int64),
        }
        return ViewParams(**{**fields, **changes})

    def __len__(self) -> int:
        return len(self.box)

    def take(self, index: Tensor | slice) -> "ViewParams":
        """The parameters at an index, a mask or a slice."""
        return ViewParams(*(x[index] for x in vars(self).values()))

    def jitter_in_order(self) -> tuple[Tensor, Tensor]:
        """The columns of `jitter` in their order, N x 4, with -1 for a neutral factor, and the factors, N x 4."""
        order = self.order.where((self.jitter != NEUTRAL_JITTER).gather(1, self.order), -1)
        return order, self.jitter.gather(1, self.order)

    @staticmethod
    def concatenate(candidates: Sequence["ViewParams"]) -> "ViewParams":
        """m candidates of N images to m · N views, one candidate after the other."""
        return ViewParams(*(torch.cat(x) for x in _by_field(candidates)))

    @staticmethod
    def gather(candidates: Sequence["ViewParams"], choice: Tensor) -> "ViewParams":
        """The parameters of candidate `choice[n]` for each image n: m candidates of N images, choice N."""
        rows = torch.arange(len(choice))
        return ViewParams(*(torch.stack(x)[choice, rows] for x in _by_field(candidates)))


def _by_field(candidates: Sequence["ViewParams"]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(vars(one).values() for one in candidates), strict=True))


def apply_where_(view: Tensor, mask: Tensor, factors: Tensor | None, operation: Callable[..., Tensor]) -> None:
    """Applies an operation in place to the images of a mask; the others stay bit for bit.

    Args:
        view: N x C x r x r.
        mask: N, bool, on the host: the device need not be waited for.
        factors: N or N x k on the host, the operation's second argument; None if it has only one.
    """
    index = mask.nonzero().squeeze(1)
    if len(index):
        chosen = index.to(view.device, non_blocking=True)
        arguments = [] if factors is None else [factors[index].to(view.device, non_blocking=True)]
        view.index_copy_(0, chosen, operation(view[chosen], *arguments))


def apply_in_order_(
    view: Tensor, order: Tensor, factors: Tensor, operations: Sequence[Callable[[Tensor, Tensor], Tensor]]
) -> None:
    """Applies each image's operations in its own order, in place.

    Args:
        view: N x C x r x r.
        order: N x n, on the host: indices into `operations`; -1 for none.
        factors: N x n, on the host: the second arguments of these operations.
    """
    for chosen, factor in zip(order.unbind(dim=1), factors.unbind(dim=1), strict=True):
        for index, operation in enumerate(operations):
            apply_where_(view, chosen == index, factor, operation)
