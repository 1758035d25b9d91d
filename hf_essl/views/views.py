"""`Views`: augmented views of a batch on its device, at a resolution and a magnitude that change in training."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD
from torch import Tensor

from hf_essl.compat import can_compile
from hf_essl.config import ViewArguments
from hf_essl.views.fused import render_fused
from hf_essl.views.params import ViewParams
from hf_essl.views.render import render_kornia
from hf_essl.views.sampler import sample_params
from hf_essl.views.tokens import kept_tokens


class Views:
    """Samples and renders augmented views; owns the current resolution, magnitude and share of patch tokens.

    `resolution` (pixels), `magnitude` and `tokens` may be set at any time, and nothing is rebuilt. During training
    only `SuperProgressiveCallback` sets them.

    Args:
        args: the augmentation chain and its probabilities.
        mean, std: pixel statistics for the normalization, one per channel.
        seed: of a private random stream; torch's global generator is not used.

    Example:
        >>> views = Views(ViewArguments(resolution=96))
        >>> params = views.sample(images, aspect=aspect)  # uint8 N x 3 x S x S, and width / height of each image
        >>> small, full = views.render(images, params, 32), views.render(images, params)

    Raises ValueError for arguments that cannot work.
    """

    def __init__(
        self,
        args: ViewArguments | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
    ):
        self.args = args or ViewArguments()
        self.args.check()
        _check_statistics(mean, std)
        self.resolution = self.args.resolution
        self.magnitude = self.args.min_magnitude
        self.tokens = self.args.min_tokens
        self.mean, self.std = (torch.tensor(x, dtype=torch.float32) for x in (mean, std))
        self.seed(seed)

    @property
    def asymmetric(self) -> bool:
        """Whether first and second views have different distributions (BYOL, DINO); with RandAugment they never do."""
        return self.args.augmentation == "simclr" and max(len(self.args.blur_p), len(self.args.solarize_p)) > 1

    @property
    def local_resolution(self) -> int:
        """Side of the local views in pixels at the current resolution."""
        return self.args.local_size(self.resolution)

    def seed(self, *numbers: int) -> None:
        """Restarts the random stream from these numbers, such as seed, rank and step."""
        state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
        self._stream = torch.Generator().manual_seed(int(state) >> 1).get_state()

    @contextmanager
    def random_stream(self) -> Iterator[None]:
        """Makes torch's global generator continue this object's stream, and restores it afterwards."""
        outer = torch.get_rng_state()
        torch.set_rng_state(self._stream)
        try:
            yield
        finally:
            self._stream = torch.get_rng_state()
            torch.set_rng_state(outer)

    def sample(self, images: Tensor, kind: int = 0, aspect: Tensor | None = None) -> ViewParams:
        """Samples the parameters of one view of each image, N x 3 x H x W, at the current magnitude.

        Args:
            kind: 0 for a first view, 1 for a second, `hf_essl.views.LOCAL` for a local view.
            aspect: float32 N on the host, width / height of the whole images that the canvases show; by default W / H.
        """
        return self.sample_all(images, [kind], aspect)[0]

    def sample_all(self, images: Tensor, kinds: Sequence[int], aspect: Tensor | None = None) -> list[ViewParams]:
        """`sample` for one view of each kind at once, which is faster."""
        count, _, height, width = images.shape
        aspect = torch.full((count,), width / height) if aspect is None else aspect
        if len(aspect) != count:
            raise ValueError(f"{count} images with {len(aspect)} aspect ratios; pass width / height of each image")
        with self.random_stream():
            params = sample_params(self.args, aspect, self.magnitude, kinds)
        return [params.take(slice(start, start + count)) for start in range(0, len(params), count)]

    def render(self, images: Tensor, params: ViewParams, size: int | None = None) -> Tensor:
        """Renders sampled views: uint8 N x 3 x H x W to normalized float32 N x 3 x size x size.

        Args:
            size: side in pixels; by default the current resolution.

        Raises ValueError if the images are not uint8 N x 3 x H x W, or not as many as the parameters.
        """
        return self.render_all(images, [params], size)[0]

    @torch.no_grad()
    def render_all(self, images: Tensor, candidates: Sequence[ViewParams], size: int | None = None) -> Tensor:
        """`render` for m views of each image at once, which is faster: m x N x 3 x size x size."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; views need torch.uint8 (N, 3, H, W)")
        for params in candidates:
            if len(images) != len(params):
                raise ValueError(f"{len(images)} images with parameters for {len(params)}; sample from the same batch")
        execute = self._executor(images.device)
        mean, std = (x.to(images.device, non_blocking=True) for x in (self.mean, self.std))
        with torch.autocast(images.device.type, enabled=False):
            views = execute(images, ViewParams.concatenate(candidates), size or self.resolution, mean, std)
        return views.unflatten(0, (len(candidates), len(images)))

    def kept_tokens(
        self, candidates: Sequence[ViewParams], patches: int, device: torch.device, share: float | None = None
    ) -> Tensor | None:
        """The patch tokens that a ViT keeps of m views of each image, int64 N x m x K on `device`; None for all.

        Args:
            patches: L, those of a view; see `patch_count`.
            share: of them; by default the current one.
        """
        share = self.tokens if share is None else share
        if share >= 1:
            return None
        seeds = torch.stack([params.tokens for params in candidates], dim=1).to(device, non_blocking=True)  # N x m
        return kept_tokens(seeds.flatten(), patches, share).unflatten(0, seeds.shape)

    def _executor(self, device: torch.device) -> Callable[..., Tensor]:
        if self.args.augmentation == "randaugment" or self.args.view_executor == "kornia":
            return render_kornia
        compiled = self.args.compile_views
        if compiled is None:  # on a CPU, only a long run regains the time of compiling
            compiled = device.type == "cuda" and can_compile()
        return partial(render_fused, compiled=compiled)

    def __call__(self, images: Tensor, size: int | None = None, aspect: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Two views of each image at the current magnitude, and at the current resolution or `size`."""
        first, second = self.render_all(images, self.sample_all(images, (0, 1), aspect), size)
        return first, second


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(map(math.isfinite, values)):
            raise ValueError(f"{name} is {tuple(values)}; it is one number for each of the three channels")
    if not all(value > 0 for value in std):
        raise ValueError(f"std is {tuple(std)}; each must be above 0")
