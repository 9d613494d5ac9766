"""Whether outputs are finite, by their extremes: nan and infinities reach them.

`torch.isfinite` writes several tensors as large as its argument; extremes write none.
"""

from __future__ import annotations

from torch import Tensor


def all_finite(values: Tensor) -> Tensor:
    """Whether all values are finite, a scalar; there must be at least one."""
    smallest, largest = values.detach().aminmax()
    return smallest.isfinite() & largest.isfinite()


def finite_outside_padding(values: Tensor, valid: Tensor) -> Tensor:
    """Whether ``[B, C, h, w]`` is finite where ``valid [B, h, w]``, a scalar."""
    values = values.detach()
    finite = values.amax(dim=1).isfinite() & values.amin(dim=1).isfinite()  # [B, h, w]
    return (finite | ~valid).all()
