"""Fakes and derivatives of the operators that serve the whole family of losses.

As in `cac_ext.ops`, each operator is an autograd Function too. Anchors, positives, keys and the
temperature have gradients. The forward pass gives those of the anchors and of the temperature; one
more pass, with the roles of anchors and keys exchanged, gives that of the keys, and is left out if
nobody asks for it. Forward mode reaches the anchors alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from cac_ext._arguments import forward_mode_is_on
from cac_ext._load import _C
from cac_ext.ops import (
    DTYPE_NUMBERS,
    NO_SECOND_DERIVATIVE,
    AlongTangent,
    check_features,
    check_prepared,
    check_rows,
    prepared_outputs,
    require_gradient,
    scaled_rows,
    value_dtype,
)

_OPERATORS = torch.ops.cac_ext


def call(operator: str, function: Any, *arguments: Any) -> Any:
    """The operator, or its autograd Function unless the call is being compiled.

    Both give the same. `torch.func` and forward mode need the Function, torch.compile the operator.
    """
    if torch.compiler.is_compiling():
        return getattr(_OPERATORS, operator)(*arguments)
    return function.apply(*arguments)


class _Once(torch.autograd.Function):
    """A gradient that depends on ``roots``, to refuse the second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *roots: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(NO_SECOND_DERIVATIVE)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def _weighted(upstream: Tensor, statistic: Tensor) -> Tensor:
    """The product [A]; 0 where the statistic is, also beside an infinite ``upstream``."""
    return torch.where(statistic == 0, statistic, upstream * statistic)


class _Gradients:
    """The gradients of one call, from what its Function saved."""

    def __init__(self, ctx: Any, grad_value: Tensor) -> None:
        self.saved = ctx.saved_tensors
        self.mask, self.normalize = ctx.mask, ctx.normalize
        self.upstream = grad_value  # [A]
        self.statistics = self.saved[-1]  # [4, A]

    def once(self, gradient: Tensor) -> Tensor:
        # Only if somebody may differentiate once more: create_graph=True, torch.func, forward mode.
        if torch.is_grad_enabled() or forward_mode_is_on():
            return _Once.apply(gradient, self.upstream, *self.saved[:4])
        return gradient

    def of_anchors(self) -> Tensor:
        anchors, gradient = self.saved[0], self.saved[-2]
        none = torch.zeros_like(self.upstream, dtype=torch.bool)
        return self.once(scaled_rows(gradient, self.upstream, none, anchors.dtype))

    def of_positives(self) -> Tensor:
        anchors, positives, _, temperature = self.saved[:4]
        weights = _weighted(self.upstream, self.statistics[2])
        gradient = _OPERATORS.contrast_gradient_of_positives(
            anchors.detach(), positives.detach(), temperature.detach(), weights, self.normalize
        )
        return self.once(gradient.to(positives.dtype))

    def of_keys(self, weights: Tensor, mask: str, logistic: bool) -> Tensor:
        """[N, C] in the type of values."""
        anchors, _, keys, temperature, labels, exclude, key_labels, rank, num_valid = self.saved[:9]
        return _OPERATORS.contrast_gradient_of_keys(
            keys.detach(),
            anchors.detach(),
            temperature.detach(),
            labels,
            exclude,
            key_labels,
            rank,
            num_valid,
            self.statistics[0],
            weights,
            mask,
            logistic,
            self.normalize,
        )

    def of_temperature(self) -> Tensor:
        temperature = self.saved[3]
        gradient = _weighted(self.upstream, self.statistics[3]).sum()
        return self.once(gradient.to(temperature))


class _ContrastFunction(torch.autograd.Function):
    operator: str
    differentiable: tuple[str, ...]  # the operator's first arguments, in their order

    @staticmethod
    def save(ctx: Any, tensors: tuple[Tensor | None, ...], inputs: Any, output: Any) -> None:
        _, gradient, statistics = output
        ctx.mark_non_differentiable(gradient, statistics)
        ctx.set_materialize_grads(False)
        ctx.with_gradient = inputs[-1]
        ctx.num_inputs = len(inputs)
        ctx.save_for_backward(*tensors, gradient, statistics)
        ctx.save_for_forward(tensors[0], gradient)

    @classmethod
    def against(
        cls,
        ctx: Any,
        grad_value: Tensor | None,
        gradient_of_keys: Callable[[_Gradients], Tensor],  # [N, C] in the type of values
    ) -> tuple[Tensor | None, ...]:
        """The gradient of each input that asks for it."""
        require_gradient(ctx.with_gradient, cls.operator)
        grads: list[Tensor | None] = [None] * ctx.num_inputs
        if grad_value is None:
            return tuple(grads)
        gradients = _Gradients(ctx, grad_value)
        keys = gradients.saved[2]
        rules = {
            "anchors": gradients.of_anchors,
            "positives": gradients.of_positives,
            "keys": lambda: gradients.once(gradient_of_keys(gradients).to(keys.dtype)),
            "temperature": gradients.of_temperature,
        }
        for place, name in enumerate(cls.differentiable):
            if ctx.needs_input_grad[place]:
                grads[place] = rules[name]()
        return tuple(grads)

    @classmethod
    def along(cls, ctx: Any, tangent: Tensor | None, *others: Any) -> tuple[Any, None, None]:
        require_gradient(ctx.with_gradient, cls.operator)
        if any(isinstance(x, Tensor) for x in others):
            raise RuntimeError("forward mode differentiates with respect to the anchors alone")
        anchors, gradient = ctx.saved_tensors
        change = None if tangent is None else AlongTangent.apply(anchors, gradient, tangent)
        return change, None, None


class Contrast(_ContrastFunction):
    """``(value [A], gradient [A, C], statistics [4, A])`` of `torch.ops.cac_ext.contrast`."""

    operator = "contrast"
    differentiable = ("anchors", "positives", "keys", "temperature")

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _OPERATORS.contrast(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        anchors, positives, keys, temperature, labels, _, exclude, _, key_labels = inputs[:9]
        rank, _, num_valid, ctx.mask, ctx.normalize = inputs[9:14]
        tensors = (anchors, positives, keys, temperature, labels, exclude)
        _ContrastFunction.save(ctx, (*tensors, key_labels, rank, num_valid), inputs, output)

    @staticmethod
    def gradient_of_keys(gradients: _Gradients) -> Tensor:
        weights = _weighted(gradients.upstream, gradients.statistics[1])
        return gradients.of_keys(weights, gradients.mask, logistic=False)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        return Contrast.against(ctx, grad_value, Contrast.gradient_of_keys)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, None, None]:
        return Contrast.along(ctx, *tangents)


class PairwiseContrast(_ContrastFunction):
    """The same of `torch.ops.cac_ext.pairwise_contrast`."""

    operator = "pairwise_contrast"
    differentiable = ("anchors", "keys", "temperature")

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _OPERATORS.pairwise_contrast(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        anchors, keys, temperature, labels, _, exclude, _, key_labels, rank, num_valid = inputs[:10]
        ctx.mask, ctx.normalize = "different", inputs[10]
        tensors = (anchors, None, keys, temperature, labels, exclude, key_labels, rank, num_valid)
        _ContrastFunction.save(ctx, tensors, inputs, output)

    @staticmethod
    def gradient_of_keys(gradients: _Gradients) -> Tensor:
        _, of_sum, of_pair, _ = gradients.statistics
        upstream = gradients.upstream
        negatives = gradients.of_keys(_weighted(upstream, of_sum), gradients.mask, logistic=False)
        positives = gradients.of_keys(-_weighted(upstream, of_pair), "same", logistic=True)
        return negatives + positives

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        return PairwiseContrast.against(ctx, grad_value, PairwiseContrast.gradient_of_keys)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, None, None]:
        return PairwiseContrast.along(ctx, *tangents)


class ClassSums(torch.autograd.Function):
    """Sums [K, C] of the rows [R, C] of each class; `ClassRows` is the adjoint."""

    @staticmethod
    def forward(rows: Tensor, classes: Tensor, num_classes: int) -> Tensor:
        return _OPERATORS.class_sums(rows, classes, num_classes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (classes,) = ctx.saved_tensors
        return call("class_rows", ClassRows, grad, classes).to(ctx.dtype), None, None


class ClassRows(torch.autograd.Function):
    """Rows [R, C] of the sums [K, C], by class."""

    @staticmethod
    def forward(sums: Tensor, classes: Tensor) -> Tensor:
        return _OPERATORS.class_rows(sums, classes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.num_classes = inputs[0].shape[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (classes,) = ctx.saved_tensors
        return call("class_sums", ClassSums, grad, classes, ctx.num_classes).to(grad.dtype), None


def _fake_outputs(features: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels = features.shape
    kept = rows if with_gradient else 0
    dtype = value_dtype(features)
    return (
        features.new_empty((rows,), dtype=dtype),
        features.new_empty((kept, channels), dtype=dtype),
        features.new_empty((4, kept), dtype=dtype),
    )


def _check_call(
    anchors: Tensor, labels: Tensor | None, active: Tensor | None, exclude: Tensor | None
) -> None:
    check_features(anchors, "anchors")
    if labels is not None:
        check_rows(labels, "anchor_labels", anchors)
    if exclude is not None:
        check_rows(exclude, "exclude", anchors)
    if active is not None and (active.dtype != torch.bool or active.shape != anchors.shape[:1]):
        raise ValueError(
            f"active must be bool of shape [{anchors.shape[0]}], but is {active.dtype} of shape "
            f"{list(active.shape)}"
        )


@torch.library.register_fake("cac_ext::prepare_keys")
def _(
    keys: Tensor,
    labels: Tensor | None,
    length: Tensor | None,
    normalize: bool,
    ignore_index: int | None = None,
) -> tuple[Tensor, ...]:
    check_features(keys, "negatives")
    if labels is not None:
        check_rows(labels, "negative_labels", keys)
    index = keys.new_empty((), dtype=torch.int64)
    layout = _C.prepared_layout(keys.device.type, DTYPE_NUMBERS[keys.dtype])
    return *prepared_outputs(keys, index, layout), index.new_empty((keys.shape[0],))


@torch.library.register_fake("cac_ext::contrast")
def _(
    anchors: Tensor,
    positives: Tensor | None,
    keys: Tensor | None,
    temperature: Tensor,
    anchor_labels: Tensor | None,
    active: Tensor | None,
    exclude: Tensor | None,
    negatives: Tensor,
    negative_labels: Tensor,
    rank: Tensor | None,
    leading_rows: Tensor,
    num_valid: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_call(anchors, anchor_labels, active, exclude)
    if positives is not None:
        check_features(positives, "positives", anchors)
    check_prepared(anchors, negatives, negative_labels, leading_rows, num_valid)
    return _fake_outputs(anchors, rest[-1])


@torch.library.register_fake("cac_ext::pairwise_contrast")
def _(
    anchors: Tensor,
    keys: Tensor | None,
    temperature: Tensor,
    anchor_labels: Tensor,
    active: Tensor | None,
    exclude: Tensor | None,
    negatives: Tensor,
    negative_labels: Tensor,
    rank: Tensor,
    num_valid: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_call(anchors, anchor_labels, active, exclude)
    check_prepared(anchors, negatives, negative_labels, num_valid)
    return _fake_outputs(anchors, rest[-1])


@torch.library.register_fake("cac_ext::contrast_gradient_of_keys")
def _(keys: Tensor, *_: Any) -> Tensor:
    return keys.new_empty(keys.shape, dtype=value_dtype(keys))


@torch.library.register_fake("cac_ext::contrast_gradient_of_positives")
def _(anchors: Tensor, positives: Tensor, *_: Any) -> Tensor:
    return positives.new_empty(positives.shape, dtype=value_dtype(positives))


@torch.library.register_fake("cac_ext::class_sums")
def _(rows: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    return rows.new_empty((num_classes, rows.shape[1]), dtype=value_dtype(rows))


@torch.library.register_fake("cac_ext::class_rows")
def _(sums: Tensor, classes: Tensor) -> Tensor:
    return sums.new_empty((classes.shape[0], sums.shape[1]))


for _operator, _function in {
    "contrast": Contrast,
    "pairwise_contrast": PairwiseContrast,
    "class_sums": ClassSums,
    "class_rows": ClassRows,
}.items():
    torch.library.register_autograd(
        f"cac_ext::{_operator}", _function.backward, setup_context=_function.setup_context
    )
