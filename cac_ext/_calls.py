"""What the public functions do around each call of an operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cac_ext._arguments import (
    forward_mode_is_on,
    reject_gradient,
    require_agreement,
    require_tensors,
)
from cac_ext.contrast_ops import call
from cac_ext.negatives import PreparedNegatives, PreparedParts, prepare_parts


def missing_labels() -> ValueError:
    """The error for negatives without labels."""
    return ValueError(
        "negative_labels are missing: pass one integer label [N] for each of the negatives "
        "[N, C], or negatives from cac_ext.prepare_negatives()"
    )


def temperature_tensor(temperature: float | Tensor) -> Tensor:
    """The temperature as a tensor []; a number becomes float64 on the CPU."""
    if isinstance(temperature, Tensor):
        return temperature
    return torch.full((), temperature, dtype=torch.float64)


def prepared_parts(
    negatives: Tensor | PreparedNegatives,
    negative_labels: Tensor | None,
    normalize: bool,
    ignore_index: int | None,
    num_valid: Tensor | None = None,
) -> PreparedParts:
    """The operators' view of the negatives, prepared here unless they are already."""
    if isinstance(negatives, PreparedNegatives):
        if negative_labels is not None:
            raise ValueError(
                "negative_labels must be left out when negatives are PreparedNegatives, which "
                "carry their labels"
            )
        if num_valid is not None:
            raise ValueError(
                "num_valid must be left out when negatives are PreparedNegatives: pass it to "
                "cac_ext.prepare_negatives()"
            )
        for name, here, there in (
            ("normalize", normalize, negatives.normalize),
            ("ignore_index", ignore_index, negatives.ignore_index),
        ):
            if here != there:
                raise ValueError(
                    f"the negatives were prepared with {name}={there}, but the loss is called "
                    f"with {name}={here}: both must be the same"
                )
        return negatives._parts
    require_tensors(negatives=negatives)
    if negative_labels is None:
        raise missing_labels()
    reject_gradient(negatives, "negatives")
    return prepare_parts(negatives, negative_labels, normalize, ignore_index, num_valid)


def require_fitting(
    features: Mapping[str, Tensor],
    required_rows: Mapping[str, Tensor],
    optional_rows: Mapping[str, Tensor | None],
    negatives: Tensor | PreparedNegatives,
) -> None:
    """Raise for the argument that does not fit the others: channels, pixels, devices.

    Optional rows that are None were left out.
    """
    given = {name: x for name, x in optional_rows.items() if x is not None}
    rows = {**required_rows, **given}
    require_tensors(**features, **rows)
    if any(x.dim() != 2 for x in features.values()):
        return  # the operators say so
    channels = {name: x.shape[1] for name, x in features.items()}
    if isinstance(negatives, PreparedNegatives):
        channels["negatives"] = negatives.channels
    elif isinstance(negatives, Tensor) and negatives.dim() == 2:
        channels["negatives"] = negatives.shape[1]
    require_agreement("{} channels", channels)
    # The operators see the negatives' channels after padding only.
    first = next(iter(channels.values()))
    if channels.get("negatives", first) != first:
        raise ValueError(
            f"negatives must have {first} channels like the anchors' features, but have "
            f"{channels['negatives']}"
        )
    all_rows = {**features, **rows}
    require_agreement("{} rows", {k: x.shape[0] for k, x in all_rows.items() if x.dim()})
    require_agreement("device {}", {k: str(x.device) for k, x in all_rows.items()})
    require_agreement("type {}", {k: str(x.dtype) for k, x in features.items()})


def wants_gradient(*features: Tensor) -> bool:
    """Whether a derivative with respect to one of them may be asked for."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in features):
        return True
    return forward_mode_is_on()  # a tangent wants the gradient too


def apply(operator: str, function: Any, *arguments: Any) -> Any:
    """The operator; through `call` if its last argument says that a derivative may be taken."""
    if arguments[-1]:
        return call(operator, function, *arguments)
    return getattr(torch.ops.cac_ext, operator)(*arguments)
