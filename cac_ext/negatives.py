"""Negatives prepared once for several calls of the loss."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext._arguments import (
    as_ignore_index,
    as_num_valid,
    cast_for_autocast,
    reject_gradient,
    require_flag,
    require_tensors,
)
from cac_ext._load import _C
from cac_ext.ops import DTYPE_NUMBERS


class PreparedParts(NamedTuple):
    """The operators' arguments; see `torch.ops.cac_ext.prepare_negatives`."""

    features: Tensor  # [N, Cp] sorted by label, in the type of the matrix product, zero-padded
    labels: Tensor  # [N] int64, ascending
    leading_rows: Tensor  # [min(N, 8000)] int64, sorted rows of the first negatives as given
    num_valid: Tensor  # [] int64, number of negatives that are not ignored; they come first
    channels: int  # C, before padding


class PreparedNegatives:
    """The result of `prepare_negatives`. Pass it as ``negatives``, without ``negative_labels``.

    Its parts depend on each other, so it is read-only. `len`, `to`, `cpu`, `cuda`, pickling and
    copying work; a pickle is checked when it is read.
    """

    _parts: PreparedParts
    _normalize: bool
    _ignore_index: int | None

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("PreparedNegatives are made by cac_ext.prepare_negatives()")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(
            f"{name} of PreparedNegatives cannot be set: prepare the negatives again"
        )

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __len__(self) -> int:
        """N, ignored negatives included."""
        return self._parts.labels.shape[0]

    @property
    def channels(self) -> int:
        """C."""
        return self._parts.channels

    @property
    def device(self) -> torch.device:
        """The device that holds them."""
        return self._parts.features.device

    @property
    def dtype(self) -> torch.dtype:
        """The type in which they are kept; products are at most as accurate."""
        return self._parts.features.dtype

    @property
    def nbytes(self) -> int:
        """Memory of the features in bytes."""
        return self._parts.features.nbytes

    @property
    def normalize(self) -> bool:
        """Whether they were normalized to unit length."""
        return self._normalize

    @property
    def ignore_index(self) -> int | None:
        """The label of the negatives that do not count, or None."""
        return self._ignore_index

    def to(self, device: torch.device | str | int) -> PreparedNegatives:
        """The same negatives on another device."""
        device = torch.empty(0, device=device).device
        if device == self.device:
            return self
        features, labels, leading_rows, num_valid, channels = self._parts
        # Devices pad rows differently.
        multiple = _C.channel_multiple(device.type, DTYPE_NUMBERS[features.dtype])
        padding = -channels % multiple
        features = F.pad(features[:, :channels].to(device), (0, padding)).contiguous()
        parts = PreparedParts(
            features, labels.to(device), leading_rows.to(device), num_valid.to(device), channels
        )
        return make_prepared(parts, self._normalize, self._ignore_index)

    def cpu(self) -> PreparedNegatives:
        """The same negatives on the CPU."""
        return self.to("cpu")

    def cuda(self, device: torch.device | str | int = "cuda") -> PreparedNegatives:
        """The same negatives on a GPU."""
        return self.to(device)

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_pickle, (tuple(self._parts), self._normalize, self._ignore_index)

    def __repr__(self) -> str:
        return (
            f"PreparedNegatives({len(self)} x {self.channels}, {self.dtype}, {self.device}, "
            f"normalize={self._normalize}, ignore_index={self._ignore_index})"
        )


def make_prepared(
    parts: PreparedParts, normalize: bool, ignore_index: int | None
) -> PreparedNegatives:
    """`PreparedNegatives` of parts that fit together."""
    made = object.__new__(PreparedNegatives)
    made.__dict__.update(_parts=parts, _normalize=normalize, _ignore_index=ignore_index)
    return made


def _read_pickle(
    parts: tuple[Any, ...], normalize: bool, ignore_index: int | None
) -> PreparedNegatives:
    found = PreparedParts(*parts)
    rows, padded = found.features.shape
    multiple = _C.channel_multiple(found.features.device.type, DTYPE_NUMBERS[found.features.dtype])
    labels, leading, valid = found.labels.cpu(), found.leading_rows.cpu(), int(found.num_valid)
    counted = torch.arange(len(leading)) < valid
    bounds = torch.where(counted, valid, rows)  # [number of leading rows]
    if not (
        found.features.is_contiguous()
        and padded == found.channels + -found.channels % multiple
        and labels.shape == (rows,)
        and bool((labels[1:] >= labels[:-1]).all())
        and 0 <= valid <= rows
        and bool(((leading >= 0) & (leading < bounds)).all())
    ):
        raise ValueError(
            "the pickled PreparedNegatives are damaged, or were made for another processor: "
            "prepare the negatives again"
        )
    return make_prepared(found, normalize, ignore_index)


def prepare_negatives(
    negatives: Tensor,
    negative_labels: Tensor,
    *,
    normalize: bool = True,
    ignore_index: int | None = None,
    num_valid: int | Tensor | None = None,
) -> PreparedNegatives:
    """Sort negatives by label, normalize them and cast them to the type of the matrix product.

    The loss does this in every call; do it once if several calls use the same negatives. The type
    follows ``torch.get_float32_matmul_precision()``. float32 negatives stay float32 under "highest"
    and "high": the loss decides later how to multiply them.

    Args:
        negatives: [N, C] features; constants of the loss, so no gradient reaches them.
        negative_labels: [N] integer (pseudo) labels.
        normalize: Divide each row by its Euclidean length; False compares rows as they are. The
            loss must be called with the same value.
        ignore_index: Label of negatives that count for no anchor. The loss must be called with the
            same value.
        num_valid: Only the first so many negatives count, as in a queue that is filled partly: a
            number, or an integer tensor [], which a GPU need not wait for.

    Raises:
        ValueError, TypeError: A shape, type or device that does not fit, or a feature that is not
            finite (CPU only: looking at the values would stall a GPU).
    """
    require_flag(normalize, "normalize")
    ignore_index = as_ignore_index(ignore_index)
    require_tensors(negatives=negatives, negative_labels=negative_labels)
    reject_gradient(negatives, "negatives")
    valid = as_num_valid(num_valid)
    parts = prepare_parts(negatives, negative_labels, normalize, ignore_index, valid)
    return make_prepared(parts, normalize, ignore_index)


def prepare_parts(
    negatives: Tensor,
    negative_labels: Tensor,
    normalize: bool,
    ignore_index: int | None,
    num_valid: Tensor | None = None,
) -> PreparedParts:
    """The parts of `prepare_negatives`."""
    return prepare_ranked(negatives, negative_labels, normalize, ignore_index, num_valid)[0]


def prepare_ranked(
    negatives: Tensor,
    negative_labels: Tensor | None,
    normalize: bool,
    ignore_index: int | None,
    num_valid: Tensor | None = None,
) -> tuple[PreparedParts, Tensor]:
    """The parts of `prepare_negatives` and the place of each negative among them, [N] int64."""
    require_tensors(negatives=negatives)
    if negative_labels is not None:
        require_tensors(negative_labels=negative_labels)
    (negatives,) = cast_for_autocast(negatives)
    features, labels, leading_rows, counted, rank = torch.ops.cac_ext.prepare_keys(
        negatives.detach(), negative_labels, num_valid, normalize, ignore_index
    )
    return PreparedParts(features, labels, leading_rows, counted, negatives.shape[1]), rank
