"""What the public functions do to their arguments before the operators check them."""

from __future__ import annotations

import torch
from torch import Tensor


def cast_for_autocast(*features: Tensor) -> tuple[Tensor, ...]:
    """The features in autocast's type where autocast is on (float64 stays, as in torch)."""
    device = features[0].device.type
    # Other devices, as "meta", may have no autocast to ask about, and have no kernels either. torch
    # could be asked which have (is_autocast_available), but torch.compile cannot in torch 2.11.
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return features
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in features
    )


def reject_gradient(constant: Tensor, name: str) -> None:
    """Raise if a gradient is asked for with respect to a constant of the loss."""
    if torch.is_grad_enabled() and constant.requires_grad:
        raise RuntimeError(
            f"{name} require a gradient, but they are constants of the loss: the gradient reaches "
            f"the anchors only (paper Eq. 6). Pass {name}.detach()"
        )
