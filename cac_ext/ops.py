"""The low-level surface: autograd Functions over the dispatcher operators ``torch.ops.cac_ext``.

The operators are written in C++ (``csrc/ops``). This module gives each what PyTorch needs to trace
and to differentiate it: a fake implementation and the derivative. The derivative is an
`torch.autograd.Function` that is registered with the operator too, so both ways give the same:

    loss, gradient = MaskedContrastiveLoss.apply(*arguments)
    loss, gradient = torch.ops.cac_ext.masked_contrastive_loss(*arguments)

One pass over the negatives gives the loss and its gradient: the forward returns both, and the
backward only scales rows. Gradients reach the anchors alone (paper Eq. 6). Reverse mode,
`torch.func` and forward mode give first derivatives; a second derivative does not exist.

On the CPU the operators check their arguments, values included, so nothing is read or written out
of bounds. The fake implementations check shapes and types.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cac_ext._arguments import forward_mode_is_on
from cac_ext._load import _C

#: Chunk of negatives over which the authors' code takes the row maximum (only with ``eps`` > 0).
LEADING_CHUNK = 8000

#: The types that features may have, by torch's numbers (at::ScalarType).
DTYPE_NUMBERS = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
_DTYPE_OF_NUMBER = {number: dtype for dtype, number in DTYPE_NUMBERS.items()}


def value_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def require_gradient(computed: bool, operator: str) -> None:
    if not computed:
        raise RuntimeError(
            f"cac_ext::{operator} was called with with_gradient=False, so it has no derivative; "
            "call it with with_gradient=True"
        )


NO_SECOND_DERIVATIVE = (
    "the fused contrastive loss has no second derivative: differentiate it once, or use "
    "cac_ext.reference, which autograd can differentiate twice"
)


class _ScaledRows(torch.autograd.Function):
    """`scaled_rows` as a function of the anchors, to refuse the second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        anchors: Tensor, gradient: Tensor, scale: Tensor, dropped: Tensor, dtype: torch.dtype
    ) -> Tensor:
        return scaled_rows(gradient, scale, dropped, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


class AlongTangent(torch.autograd.Function):
    """The values' change along a tangent of the anchors, ``[A]``: linear in the tangent alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(anchors: Tensor, gradient: Tensor, tangent: Tensor) -> Tensor:
        return (gradient * tangent).sum(dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        if ctx.needs_input_grad[0]:
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        (gradient,) = ctx.saved_tensors
        return None, None, gradient * grad[:, None]

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def scaled_rows(gradient: Tensor, scale: Tensor, dropped: Tensor, dtype: torch.dtype) -> Tensor:
    # Selected, not multiplied by 0: the factor may be infinite. A row without gradient stays so.
    zero = dropped[:, None] | (gradient == 0)  # [A, C]
    # In place: `torch.where` would hold the rows twice.
    return (gradient * scale[:, None]).masked_fill_(zero, 0.0).to(dtype)


def _scale_rows(anchors: Tensor, gradient: Tensor, scale: Tensor, dropped: Tensor) -> Tensor:
    """``gradient [A, C] * scale [A]``, 0 in the rows ``dropped [A]``, in the anchors' type."""
    # Only if somebody may differentiate once more: create_graph=True, torch.func, forward mode.
    if torch.is_grad_enabled() or forward_mode_is_on():
        return _ScaledRows.apply(anchors, gradient, scale, dropped, anchors.dtype)
    return scaled_rows(gradient, scale, dropped, anchors.dtype)


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
        ctx.save_for_backward(gradient, inputs[0])
        ctx.save_for_forward(gradient, inputs[0])

    @classmethod
    def _backward(cls, ctx: Any, grad_value: Tensor | None) -> tuple[Tensor | None, ...]:
        require_gradient(ctx.with_gradient, cls.operator)
        gradient, anchors = ctx.saved_tensors
        if grad_value is None:
            return (None,) * ctx.num_inputs
        none = torch.zeros_like(grad_value, dtype=torch.bool)
        grad_anchors = _scale_rows(anchors, gradient, grad_value, none)
        return grad_anchors, *[None] * (ctx.num_inputs - 1)

    @classmethod
    def _jvp(cls, ctx: Any, tangent: Tensor | None) -> tuple[Tensor | None, None]:
        require_gradient(ctx.with_gradient, cls.operator)
        gradient, anchors = ctx.saved_tensors
        return (None if tangent is None else AlongTangent.apply(anchors, gradient, tangent)), None


class MaskedLogSumExp(_OneDirection):
    """``(value [A], gradient [A, C])`` of the masked log-sum-exp of cosine similarities."""

    operator = "masked_logsumexp"

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.cac_ext.masked_logsumexp(*args)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        return MaskedLogSumExp._backward(ctx, grad_value)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        return MaskedLogSumExp._jvp(ctx, tangent)


class MaskedContrastiveLoss(_OneDirection):
    """``(loss [A], gradient [A, C])`` of one direction, anchors against positives and negatives."""

    operator = "masked_contrastive_loss"

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.cac_ext.masked_contrastive_loss(*args)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        return MaskedContrastiveLoss._backward(ctx, grad_value)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        return MaskedContrastiveLoss._jvp(ctx, tangent)


class DirectionalContrastiveLoss(torch.autograd.Function):
    """``(loss [2, A], gradient [A, C], direction [A])`` of both directions in one pass.

    A pixel is the anchor in at most one direction, so one gradient row each suffices;
    ``direction`` says to whom it belongs: 1 to ``features1``, 2 to ``features2``, 0 to neither
    (then it is zero).
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
        ctx.save_for_backward(gradient, direction, *inputs[:2])
        ctx.save_for_forward(gradient, direction, *inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        require_gradient(ctx.with_gradient, "directional_contrastive_loss")
        gradient, direction, *features = ctx.saved_tensors  # [A, C], [A], 2 of [A, C]
        grads: list[Tensor | None] = [None, None]
        if grad_loss is not None:
            for view in range(2):
                if ctx.needs_input_grad[view]:
                    dropped = direction != view + 1  # [A]
                    grads[view] = _scale_rows(features[view], gradient, grad_loss[view], dropped)
        return *grads, *[None] * (ctx.num_inputs - 2)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None]:
        require_gradient(ctx.with_gradient, "directional_contrastive_loss")
        gradient, direction, *features = ctx.saved_tensors  # [A, C], [A], 2 of [A, C]
        rows = []
        for view, tangent in enumerate(tangents[:2]):
            along = torch.zeros_like(gradient[:, 0])
            if tangent is not None:
                change = AlongTangent.apply(features[view], gradient, tangent)
                along = torch.where(direction == view + 1, change, 0.0)
            rows.append(along)
        return torch.stack(rows), None, None


def _fake_outputs(features: Tensor, with_gradient: bool, *leading: int) -> tuple[Tensor, Tensor]:
    rows, channels = features.shape
    dtype = value_dtype(features)
    value = features.new_empty((*leading, rows), dtype=dtype)
    return value, features.new_empty((rows if with_gradient else 0, channels), dtype=dtype)


# The fakes check everything that needs no values, as csrc/ops/checks.cpp does.


def check_features(features: Tensor, name: str, like: Tensor | None = None) -> None:
    if features.dim() != 2:
        raise ValueError(
            f"{name} must have shape [pixels, channels], but got {list(features.shape)}"
        )
    if features.dtype not in DTYPE_NUMBERS:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, but got {features.dtype}"
        )
    if like is not None and features.shape != like.shape:
        raise ValueError(
            f"{name} must have shape {list(like.shape)}, but got {list(features.shape)}"
        )
    if like is not None and features.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype}, but got {features.dtype}")


def check_rows(rows: Tensor, name: str, like: Tensor, *, floating: bool = False) -> None:
    if rows.dim() != 1 or rows.shape[0] != like.shape[0]:
        raise ValueError(f"{name} must have shape [{like.shape[0]}], but got {list(rows.shape)}")
    if rows.is_floating_point() != floating or (not floating and rows.dtype == torch.bool):
        kind = "floating point" if floating else "integers"
        raise TypeError(f"{name} must be {kind}, but got {rows.dtype}")


def check_prepared(features: Tensor, negatives: Tensor, *index: Tensor) -> None:
    if negatives.dim() != 2 or negatives.shape[1] < features.shape[1]:
        raise ValueError(
            f"negatives must have {features.shape[1]} channels like the features, but have shape "
            f"{list(negatives.shape)}"
        )
    if (negatives.dtype == torch.float64) != (features.dtype == torch.float64):
        raise TypeError(
            "negatives and features must be float64 together or not at all, but got "
            f"{negatives.dtype} negatives and {features.dtype} features"
        )
    if any(part.dtype != torch.int64 for part in index):
        raise ValueError("labels, leading_rows and num_valid of prepared negatives must be int64")
    if index[0].shape != negatives.shape[:1]:
        raise ValueError(
            f"prepared negatives have {negatives.shape[0]} rows, but labels of shape "
            f"{list(index[0].shape)}"
        )


def prepared_outputs(
    negatives: Tensor, index: Tensor, layout: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty features, labels, leading rows and number of valid negatives; ``index`` any tensor."""
    rows, channels = negatives.shape
    dtype, multiple = layout
    padded_channels = (channels + multiple - 1) // multiple * multiple
    return (
        negatives.new_empty((rows, padded_channels), dtype=_DTYPE_OF_NUMBER[dtype]),
        index.new_empty((rows,), dtype=torch.int64),
        index.new_empty((torch.sym_min(rows, LEADING_CHUNK),), dtype=torch.int64),
        index.new_empty((), dtype=torch.int64),
    )


@torch.library.register_fake("cac_ext::prepare_negatives")
def _(
    negatives: Tensor, negative_labels: Tensor, normalize: bool, ignore_index: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_features(negatives, "negatives")
    check_rows(negative_labels, "negative_labels", negatives)
    layout = _C.prepared_layout(negatives.device.type, DTYPE_NUMBERS[negatives.dtype])
    features, labels, leading_rows, num_valid = prepared_outputs(negatives, negative_labels, layout)
    return features, labels, leading_rows, num_valid


@torch.library.register_fake("cac_ext::masked_logsumexp")
def _(
    anchors: Tensor,
    negatives: Tensor,
    anchor_labels: Tensor,
    negative_labels: Tensor,
    num_valid: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    check_features(anchors, "anchors")
    check_rows(anchor_labels, "anchor_labels", anchors)
    check_prepared(anchors, negatives, negative_labels, num_valid)
    return _fake_outputs(anchors, rest[-1])


@torch.library.register_fake("cac_ext::masked_contrastive_loss")
def _(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    anchor_labels: Tensor,
    negative_labels: Tensor,
    leading_rows: Tensor,
    num_valid: Tensor,
    active: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    check_features(anchors, "anchors")
    check_features(positives, "positives", anchors)
    check_rows(anchor_labels, "anchor_labels", anchors)
    check_prepared(anchors, negatives, negative_labels, leading_rows, num_valid)
    if active is not None and (active.dtype != torch.bool or active.shape != anchors.shape[:1]):
        raise ValueError(
            f"active must be bool of shape [{anchors.shape[0]}], but is {active.dtype} of shape "
            f"{list(active.shape)}"
        )
    return _fake_outputs(anchors, rest[-1])


@torch.library.register_fake("cac_ext::directional_contrastive_loss")
def _(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    pseudo_labels1: Tensor,
    pseudo_labels2: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
    leading_rows: Tensor,
    num_valid: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    check_features(features1, "features1")
    check_features(features2, "features2", features1)
    check_rows(confidences1, "confidences1", features1, floating=True)
    check_rows(confidences2, "confidences2", features1, floating=True)
    check_rows(pseudo_labels1, "pseudo_labels1", features1)
    check_rows(pseudo_labels2, "pseudo_labels2", features1)
    check_prepared(features1, negatives, negative_labels, leading_rows, num_valid)
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
