"""The low-level surface: autograd Functions over the dispatcher operators ``torch.ops.cac_ext``.

The operators are written in C++ (``csrc/ops``). Here each gets, once, what PyTorch needs to trace
and to differentiate it: a fake implementation and the derivative. The derivative is an
`torch.autograd.Function`, registered with the operator too, so that both ways give the same:

    loss, gradient = MaskedContrastiveLoss.apply(*arguments)
    loss, gradient = torch.ops.cac_ext.masked_contrastive_loss(*arguments)

One pass over the negatives gives the loss and its gradient, so the forward returns both and the
backward only scales rows. Gradients reach the anchors alone (paper Eq. 6); a second derivative does
not exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cac_ext import _C
from cac_ext.reference import LEADING_CHUNK

_DTYPE_NUMBERS = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
_DTYPE_OF_NUMBER = {number: dtype for dtype, number in _DTYPE_NUMBERS.items()}


def _value_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _require_gradient(computed: bool, operator: str) -> None:
    if not computed:
        raise RuntimeError(
            f"cac_ext::{operator} was called with with_gradient=False, so it has no derivative; "
            "call it with with_gradient=True"
        )


def _scale_rows(gradient: Tensor, scale: Tensor) -> Tensor:
    """``gradient [A, C] * scale [A]`` in float32, rounded once to the features' type."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused contrastive loss has no second derivative; call backward() without "
            "create_graph=True"
        )
    return (gradient * scale[:, None]).to(gradient.dtype)


class _OneDirection(torch.autograd.Function):
    """Shared by the two operators that return ``(value [A], gradient [A, C])``."""

    operator: str

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        gradient = output[1]
        ctx.mark_non_differentiable(gradient)
        ctx.set_materialize_grads(False)
        ctx.with_gradient = inputs[-1]
        ctx.num_inputs = len(inputs)
        ctx.save_for_backward(gradient)

    @classmethod
    def _backward(cls, ctx: Any, grad_value: Tensor | None) -> tuple[Tensor | None, ...]:
        _require_gradient(ctx.with_gradient, cls.operator)
        (gradient,) = ctx.saved_tensors
        grad_anchors = None if grad_value is None else _scale_rows(gradient, grad_value)
        return grad_anchors, *[None] * (ctx.num_inputs - 1)


class MaskedLogSumExp(_OneDirection):
    """``(value [A], gradient [A, C])`` of the masked log-sum-exp of cosine similarities."""

    operator = "masked_logsumexp"

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.cac_ext.masked_logsumexp(*args)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        return MaskedLogSumExp._backward(ctx, grad_value)


class MaskedContrastiveLoss(_OneDirection):
    """``(loss [A], gradient [A, C])`` of one direction, anchors against positives and negatives."""

    operator = "masked_contrastive_loss"

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.cac_ext.masked_contrastive_loss(*args)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        return MaskedContrastiveLoss._backward(ctx, grad_value)


class DirectionalContrastiveLoss(torch.autograd.Function):
    """``(loss [2, A], gradient [A, C], direction [A])`` of both directions in one pass.

    A pixel is the anchor in at most one direction, so one gradient row each suffices;
    ``direction`` says whose it is: 1 ``features1``'s, 2 ``features2``'s, 0 nobody's (and zero).
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.cac_ext.directional_contrastive_loss(*args)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        _, gradient, direction = output
        ctx.mark_non_differentiable(gradient, direction)
        ctx.set_materialize_grads(False)
        ctx.with_gradient = inputs[-1]
        ctx.num_inputs = len(inputs)
        ctx.save_for_backward(gradient, direction)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        _require_gradient(ctx.with_gradient, "directional_contrastive_loss")
        gradient, direction = ctx.saved_tensors  # [A, C], [A]
        grads: list[Tensor | None] = [None, None]
        if grad_loss is not None:
            for view in range(2):
                if ctx.needs_input_grad[view]:
                    scale = torch.where(direction == view + 1, grad_loss[view], 0.0)  # [A]
                    grads[view] = _scale_rows(gradient, scale)
        return *grads, *[None] * (ctx.num_inputs - 2)


def _fake_outputs(features: Tensor, with_gradient: bool, *leading: int) -> tuple[Tensor, Tensor]:
    rows, channels = features.shape
    value = features.new_empty((*leading, rows), dtype=_value_dtype(features))
    return value, features.new_empty((rows if with_gradient else 0, channels))


@torch.library.register_fake("cac_ext::prepare_negatives")
def _(negatives: Tensor, negative_labels: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels = negatives.shape
    dtype, multiple = _C.prepared_layout(negatives.device.type, _DTYPE_NUMBERS[negatives.dtype])
    padded_channels = (channels + multiple - 1) // multiple * multiple
    return (
        negatives.new_empty((rows, padded_channels), dtype=_DTYPE_OF_NUMBER[dtype]),
        negative_labels.new_empty((rows,), dtype=torch.int64),
        negative_labels.new_empty((torch.sym_min(rows, LEADING_CHUNK),), dtype=torch.int64),
    )


@torch.library.register_fake("cac_ext::masked_logsumexp")
def _(anchors: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_outputs(anchors, rest[-1])


@torch.library.register_fake("cac_ext::masked_contrastive_loss")
def _(anchors: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_outputs(anchors, rest[-1])


@torch.library.register_fake("cac_ext::directional_contrastive_loss")
def _(features1: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, gradient = _fake_outputs(features1, rest[-1], 2)
    return loss, gradient, features1.new_empty((features1.shape[0],), dtype=torch.int8)


for _operator, _function in {
    "masked_logsumexp": MaskedLogSumExp,
    "masked_contrastive_loss": MaskedContrastiveLoss,
    "directional_contrastive_loss": DirectionalContrastiveLoss,
}.items():
    torch.library.register_autograd(
        f"cac_ext::{_operator}", _function.backward, setup_context=_function.setup_context
    )
