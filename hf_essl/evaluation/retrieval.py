"""Evidence that needs no labels: does the backbone know an image again, and what does it find similar?"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from hf_essl.common import evenly_spaced
from hf_essl.config import ViewArguments
from hf_essl.config.views import STANDARD_MAGNITUDE
from hf_essl.data import ImageDataset
from hf_essl.evaluation.features import Transform
from hf_essl.views import ViewParams, Views

RETRIEVAL_IMAGES = 512  # at most; chance is one in as many
VIEW_SEED = 20_221  # of the views: the same in all evaluations, runs, batch sizes and numbers of processes


@torch.no_grad()
def view_retrieval(first: Tensor, second: Tensor) -> float:
    """Share of N images, in percent, whose first view is nearer to its own second view than to all others.

    Nearness is the cosine of the features. A tie is a miss, so a backbone that maps all images to one point has 0.

    Args:
        first, second: features of two views of each image, N x D each, of any floating dtype; computed in float32.

    Raises ValueError for shapes that differ or are not N x D with N at least 2, and for features that are not finite.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"the features of the views have shapes {shapes}; both must be N x D with N at least 2")
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise ValueError("the features are not finite; the model has diverged, lower learning_rate")
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T  # N x N
    own = similarity.diagonal()
    others = similarity.masked_fill(torch.eye(len(first), dtype=torch.bool, device=first.device), -torch.inf)
    return 100 * (own > others.max(dim=1).values).float().mean().item()


class FixedViews:
    """A `Transform` to one augmented view of each image at full resolution and standard magnitude, always the same.

    An image's view depends on its position among the images only, in the order in which `extract_features` shares
    them out.

    Args:
        args: the augmentation chain of the run.
        mean, std: pixel statistics for the normalization.
        kind: 0 for the first view of a pair, 1 for the second.
        accelerator: provides the rank and the number of processes.
    """

    def __init__(
        self,
        args: ViewArguments,
        mean: Sequence[float],
        std: Sequence[float],
        kind: int,
        accelerator: Accelerator | None = None,
    ):
        self.views = Views(replace(args, compile_views=False), mean, std)  # few images: compiling would not pay
        self.views.magnitude = standard_magnitude(args)
        self.kind = kind
        self.position: int = accelerator.process_index if accelerator else 0
        self.step: int = accelerator.num_processes if accelerator else 1

    def __call__(self, images: Tensor, aspect: Tensor) -> Tensor:
        """Canvases, uint8 B x 3 x S x S, to normalized float32 B x 3 x r x r."""
        params = []
        for row in range(len(images)):
            self.views.seed(VIEW_SEED, self.kind, self.position)
            params.append(self.views.sample(images[row : row + 1], self.kind, aspect[row : row + 1]))
            self.position += self.step
        return self.views.render(images, ViewParams.concatenate(params))


def standard_magnitude(args: ViewArguments) -> float:
    """The magnitude of fixed views: 5, or the run's largest if its hue cannot be shifted that far."""
    if args.augmentation == "simclr" and args.jitter[3] > 0.5:
        return max(args.min_magnitude, args.max_magnitude)
    return STANDARD_MAGNITUDE


def measure_retrieval(
    extract: Callable[..., tuple[Tensor, Tensor | None]],
    images: ImageDataset,
    fixed_views: Callable[[int], Transform],
) -> float:
    """`view_retrieval` of at most 512 images, evenly spaced over a dataset; call it on all processes.

    Args:
        extract: returns the features of a dataset; it accepts `indices` and `transform` of `extract_features`.
        fixed_views: the transform to the first views, from 0, and to the second, from 1.
    """
    chosen = evenly_spaced(len(images), RETRIEVAL_IMAGES)  # type: ignore[arg-type]
    first, second = (extract(images, indices=chosen, transform=fixed_views(kind))[0] for kind in (0, 1))
    return view_retrieval(first, second)
