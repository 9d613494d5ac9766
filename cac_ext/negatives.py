"""Negatives made ready once for several calls of the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cac_ext._arguments import cast_for_autocast, reject_gradient


class PreparedNegatives(NamedTuple):
    """What `prepare_negatives` returns. Pass it as ``negatives``, without ``negative_labels``."""

    #: [N, Cp] unit length, sorted by label, in the type of the matrix product, zero-padded.
    features: Tensor
    #: [N] int64, ascending.
    labels: Tensor
    #: [min(N, 8000)] int64: where the first negatives, as given, went (used by ``eps`` only).
    leading_rows: Tensor
    #: C, the number of channels before padding.
    channels: int


def prepare_negatives(
    negatives: Tensor, negative_labels: Tensor, *, normalize: bool = True
) -> PreparedNegatives:
    """Sort negatives by label, make them unit length and cast them to the type of the product.

    The loss does this by itself in every call; do it once if the same negatives serve several.
    The type follows ``torch.get_float32_matmul_precision()``: float32 negatives stay float32 under
    "highest" and "high", and what they are multiplied as is decided when the loss is computed.

    Args:
        negatives: [N, C] features; constants of the loss, so no gradient reaches them.
        negative_labels: [N] integer (pseudo) labels.
        normalize: Divide each row by its Euclidean length; False trusts that it is 1.

    Raises:
        ValueError, TypeError: A shape, type or device that does not fit, or a feature that is not
            finite (CPU only: looking at the values would stall a GPU).
    """
    reject_gradient(negatives, "negatives")
    (negatives,) = cast_for_autocast(negatives)
    prepared = torch.ops.cac_ext.prepare_negatives(negatives, negative_labels, normalize)
    return PreparedNegatives(*prepared, channels=negatives.shape[1])
