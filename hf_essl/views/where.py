"""Applies an operation to some images of a batch, and to them alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def apply_where(view: Tensor, mask: Tensor, factors: Tensor | None, operation: Callable[..., Tensor]) -> Tensor:
    """Applies an operation to the images of a mask; the others stay bit for bit.

    Args:
        view: N x …, one row an image; it is left alone.
        mask: N, bool, on the host: a mask on the device would have to be waited for.
        factors: N or N x k on the host, given to the operation, on the device, for the images of the mask.
    """
    return apply_where_(view.clone(), mask, factors, operation) if mask.any() else view


def apply_where_(view: Tensor, mask: Tensor, factors: Tensor | None, operation: Callable[..., Tensor]) -> Tensor:
    """`apply_where` in place."""
    index = mask.nonzero().squeeze(1)
    if not len(index):
        return view
    chosen = index.to(view.device, non_blocking=True)
    given = [] if factors is None else [factors[index].to(view.device, non_blocking=True)]
    return view.index_copy_(0, chosen, operation(view[chosen], *given))
