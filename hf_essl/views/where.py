"""Applies an operation to some images of a batch, and to them alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def apply_where(view: Tensor, mask: Tensor, factors: Tensor | None, operation: Callable[..., Tensor]) -> Tensor:
    """Applies an operation to the images of a mask; the others stay bit for bit.

    Args:
        view: N x 3 x r x r.
        mask: N, bool, on the host: a mask on the device would have to be waited for.
        factors: N or N x k on the host, given to the operation, on the device, for the images of the mask.
    """
    index = mask.nonzero().squeeze(1)
    if not len(index):
        return view
    chosen = index.to(view.device, non_blocking=True)
    if factors is None:
        changed = operation(view[chosen])
    else:
        changed = operation(view[chosen], factors[index].to(view.device, non_blocking=True))
    return view.index_copy(0, chosen, changed)
