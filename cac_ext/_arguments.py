"""Argument checks and conversions of the public functions; the operators check the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

#: Which negatives count for an anchor: those of a different label, of the same label, or all.
MASKS = ("different", "same", "all")

_REDUCTIONS = ("active_mean", "active_mean_each", "mean", "sum", "none")


def cast_for_autocast(*features: Tensor) -> tuple[Tensor, ...]:
    """The features in autocast's type if autocast is on (float64 stays, as in torch)."""
    device = features[0].device.type
    # Other devices, e.g. "meta", may have no autocast to ask about, and have no kernels anyway.
    # torch.amp.is_autocast_available would tell, but torch 2.11 cannot compile it.
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return features
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in features
    )


def forward_mode_is_on() -> bool:
    """Whether forward-mode derivatives are computed; always False while compiling."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _has_tangent(tensor: Tensor) -> bool:
    return forward_mode_is_on() and forward_ad.unpack_dual(tensor).tangent is not None


def reject_tangent(constant: Tensor, name: str) -> None:
    """Raise in forward mode if ``constant`` has a tangent: only the anchors may have one."""
    if _has_tangent(constant):
        raise RuntimeError(
            f"{name} have a tangent, but are constants of the loss in forward mode, which "
            f"differentiates with respect to the anchors alone. Use reverse mode"
        )


def reject_gradient(constant: Tensor, name: str) -> None:
    """Raise if a derivative with respect to a constant of the loss is asked for."""
    if (torch.is_grad_enabled() and constant.requires_grad) or _has_tangent(constant):
        raise RuntimeError(
            f"{name} require a gradient, but they are constants of the loss: the gradient reaches "
            f"the anchors only (paper Eq. 6). Pass {name}.detach()"
        )


def require_tensors(**arguments: Any) -> None:
    """Raise TypeError for an argument that is no dense tensor, naming it."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor, but got {_describe(value)}; use torch.as_tensor()"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, but is {value.layout}; use to_dense()")


def as_number(value: Any, name: str) -> float:
    """The value as a float: int, float, NumPy number, or a CPU tensor of one number.

    Raises:
        TypeError: it is none of these.
        RuntimeError: a tensor that requires a gradient, which the loss does not compute.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise RuntimeError(
                f"{name} requires a gradient, but the loss has none with respect to it: pass "
                f"float({name}), or {name}.detach()"
            )
        if value.ndim or value.device.type != "cpu" or value.is_complex():
            raise TypeError(
                f"{name} must be a number or a tensor of one number on the CPU, but got "
                f"{_describe(value)}; pass {name}.item()"
            )
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} must be a number, but got {_describe(value)}")
    return float(value)


def as_temperature(value: Any) -> float | Tensor:
    """A number, or the tensor if it is to be learned or the host would have to wait for it.

    Raises:
        TypeError: neither a number nor a tensor of one floating point number.
    """
    if not isinstance(value, Tensor) or not (value.requires_grad or value.device.type != "cpu"):
        return as_number(value, "temperature")
    if value.ndim or not value.is_floating_point():
        raise TypeError(
            "temperature must be a number or a tensor of one floating point number, but got "
            f"{_describe(value)}"
        )
    return value


def as_num_valid(value: Any) -> Tensor | None:
    """A count as an integer tensor []; None stays."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"num_valid must be an integer, a tensor of one integer or None, but got "
            f"{_describe(value)}"
        )
    return torch.full((), int(value), dtype=torch.int64)


def require_mask(mask: Any) -> None:
    """Raise ValueError for a mask that does not exist."""
    if mask not in MASKS:
        raise ValueError(f"mask must be {', '.join(map(repr, MASKS))}, but got {mask!r}")


def require_flag(value: Any, name: str) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but got {_describe(value)}")


def as_ignore_index(value: Any) -> int | None:
    """An integer label or None; TypeError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"ignore_index must be an integer label or None, but got {_describe(value)}"
        )
    return int(value)


def require_reduction(value: Any) -> None:
    """Raise ValueError for a reduction that does not exist."""
    if value not in _REDUCTIONS:
        raise ValueError(
            f"reduction must be {', '.join(map(repr, _REDUCTIONS[:-1]))} or {_REDUCTIONS[-1]!r}, "
            f"but got {value!r}"
        )


def require_weights(weights: Any, features: Tensor, name: str) -> None:
    """Raise unless ``weights`` is one factor for each row of ``features``."""
    require_tensors(weights=weights)
    if weights.shape != features.shape[:1]:
        raise ValueError(
            f"weights must have shape [{features.shape[0]}], one factor for each pixel of {name}, "
            f"but got {list(weights.shape)}"
        )
    if not weights.is_floating_point():
        raise TypeError(f"weights must be floating point, but got {weights.dtype}")
    if weights.device != features.device:
        raise ValueError(
            f"weights must be on {features.device} like the features, but are on {weights.device}"
        )


def require_agreement(what: str, values: dict[str, Any]) -> None:
    """Raise ValueError if the first of three or more arguments differs from all the others.

    The operators compare with the first argument, so they would blame another one if the first is
    the odd one out. ``what`` has a place for the value: "{} channels".
    """
    name, *others = values
    odd, *rest = values.values()
    if len(rest) < 2 or odd == rest[0] or any(value != rest[0] for value in rest):
        return
    common = rest[0]
    raise ValueError(
        f"{name} must have {what.format(common)} like {', '.join(others)}, but has "
        f"{what.format(odd)}"
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
