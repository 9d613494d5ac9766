"""The judge of the loss: values and gradients within relative bounds of the float64 oracle.

The same checks judge the loss and wrong losses made on purpose, which they must reject.

The bound of a row starts from the error of a logit, ``E = K (u t + v)``. t is the logit's largest
size, 1 / tau for unit vectors; u is half a unit in the last place of what is multiplied, v of the
sums, with the error of an exponential; K is a factor. Where factors are rounded first, as to
bfloat16, their errors average out over the C channels, so u is divided by sqrt(C).

* A loss moves at most as much as its margin, log S - a p / tau, and a small one in proportion to
  itself: by min(E, loss (e^E - 1)) at most, beside the rounding of the result.
* A gradient is ``w T(mean of negatives - positive) / (tau |a|)``, with w = 1 - P_+ and T the
  projection. Its error is at most ``(e^E - 1) w (|n| + |p|) / (tau |a|)``, measured before the
  projection, which may leave nothing but rounding, beside the rounding of the result.

The factors in `FACTORS` are three times the largest K that the CPU kernels needed in 60 seeds of
each of `loss_cases.SHAPES` at the temperatures 1, 0.1 and 0.02 on every instruction set:

    multiplied as    u       losses: worst row, all   gradients: worst row, all
    float64          2^-53   16    11                 6.3   6.3
    float32          2^-24    6.3   5                 2.7   1.7
    two bfloat16     2^-17    3.5   2.7               2.4   1.2
    bfloat16         2^-8     3.5   2.2               1.9   1.2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from loss_arithmetics import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    TF32,
    THREE_TF32,
    TWO_BFLOAT16,
    multiplication_of,
)
from loss_cases import LossCase
from torch import Tensor

import cac_ext
from cac_ext import reference

Loss = Callable[..., Tensor]

REDUCTIONS = ["active_mean", "active_mean_each", "mean", "sum"]


@dataclass(frozen=True)
class Factors:
    """K of the worst row and of all rows together."""

    losses: tuple[float, float]
    gradients: tuple[float, float]


FACTORS = {
    FLOAT64: Factors((48, 33), (19, 19)),
    FLOAT32: Factors((19, 15), (8, 5)),
    THREE_TF32: Factors((19, 15), (8, 5)),
    TWO_BFLOAT16: Factors((10.5, 8), (7, 4)),
    TF32: Factors((10.5, 7), (6, 4)),
    BFLOAT16: Factors((10.5, 7), (6, 4)),
}


@dataclass(frozen=True)
class Outcome:
    """Losses [2, A] or less, and the gradient [A, C] of a weighted sum of them for either view."""

    losses: Tensor
    gradients: tuple[Tensor, Tensor]


def outcome(
    loss: Loss, case: LossCase, sum_weights: Tensor, *, reduction: str = "none", **options
) -> Outcome:
    """All in float64; ``sum_weights`` has the losses' shape."""
    features = [x.detach().clone().requires_grad_() for x in (case.features1, case.features2)]
    losses = loss(*features, *case.arguments()[2:], reduction=reduction, **options)
    losses.backward(sum_weights.to(losses.dtype))
    return Outcome(losses.detach().double(), tuple(x.grad.double() for x in features))


def upstream(case: LossCase, *shape: int) -> Tensor:
    """Weights of a sum of losses; large for float16, as a GradScaler makes them."""
    shape = shape or (2, case.features1.shape[0])
    scale = 1024 if case.features1.dtype == torch.float16 else 1
    weights = torch.arange(torch.Size(shape).numel(), device=case.features1.device)
    return (scale * (0.5 + weights % 64 / 64)).reshape(shape)


def active_of(
    case: LossCase, confidence_threshold: float = 0.75, ignore_index: int | None = None, **_: object
) -> Tensor:
    """The anchors of each direction, [2, A] bool."""
    active = reference.direction_masks(
        case.confidences1.double(), case.confidences2.double(), confidence_threshold
    )
    if ignore_index is None:
        return active
    return active & (torch.stack([case.pseudo_labels1, case.pseudo_labels2]) != ignore_index)


@dataclass(frozen=True)
class Scales:
    """Units of the errors, for each direction and anchor: all [2, A]."""

    logit: Tensor  # t, the largest size of a logit
    gradient: Tensor  # w (|n| + |p|) / (tau |a|), times the weight in the sum
    steepest: Tensor  # the same with w = 1


def scales_of(
    case: LossCase,
    losses: Tensor,  # [2, A], the oracle's
    weights: Tensor,  # [2, A]
    *,
    temperature: float = 0.1,
    normalize: bool = True,
    eps: float = 0.0,
    **_: object,
) -> Scales:
    lengths = torch.stack([x.double().norm(dim=1) for x in (case.features1, case.features2)])
    if normalize:
        # Too short to have a direction: divided by a constant, and its gradient is 0.
        directed = lengths > reference.MIN_NORM
        logit = torch.where(directed, 1.0, lengths / reference.MIN_NORM) / temperature
        steepest = torch.where(directed, 2 / lengths.clamp(min=reference.MIN_NORM), 0.0)
    else:
        rows = case.negatives.double().norm(dim=1)
        reach = lengths.flip(0).clamp(min=rows.max().item() if len(rows) else 0.0)
        logit, steepest = lengths * reach / temperature, 2 * reach
    steepest = steepest * weights.double() / temperature
    slope = -torch.expm1(-losses)  # w = 1 - P_+
    if eps > 0:
        share = ((-losses).exp() - eps).clamp(min=0)  # P_+
        slope = (slope + eps).clamp(min=0) * share / (share + eps)
    return Scales(logit, steepest * slope, steepest)


@dataclass(frozen=True)
class Comparison:
    """Errors of an outcome and their bounds."""

    ours: Outcome
    exact: Outcome
    active: Tensor  # [2, A] bool
    scales: Scales
    logit_error: Tensor  # [2, A], E for K = 1
    sum_unit: float  # v
    result: torch.finfo  # of the gradient's type
    eps: float

    def loss_bound(self, factor: float) -> Tensor:
        """[2, A]"""
        error = factor * self.logit_error
        losses = self.exact.losses.abs()
        bound = torch.minimum(error, losses * torch.expm1(error.clamp(max=50)))
        # Subnormal numbers are rounded to them; with eps it is the logarithm of a number near 1.
        absolute = 1e-45 + 8 * self.sum_unit * (self.eps > 0)
        return (bound + 2 * self.sum_unit * losses + absolute) * self.active

    def gradient_bound(self, view: int, factor: float) -> Tensor:
        """[A]"""
        growth = torch.expm1((factor * self.logit_error[view]).clamp(max=50))
        error = torch.minimum(self.scales.gradient[view] * growth, 2 * self.scales.steepest[view])
        exact = self.exact.gradients[view]
        if self.eps > 0:  # where the oracle itself takes P_+ from 1
            error = error + 8 * FLOAT64.unit * self.scales.steepest[view]
        rounding = self.result.eps * exact.norm(dim=1)
        underflow = self.result.smallest_normal * self.result.eps * exact.shape[1] ** 0.5
        return error + (rounding + underflow) * self.active[view]

    def loss_error(self) -> Tensor:
        """[2, A]"""
        return (self.ours.losses - self.exact.losses).abs()

    def gradient_error(self, view: int) -> Tensor:
        """[A]"""
        return (self.ours.gradients[view] - self.exact.gradients[view]).norm(dim=1)

    def lost_elements(self) -> int:
        """Elements of the gradients that are 0 but must not be, as a filter would make them."""
        lost = 0
        underflow = self.result.smallest_normal * self.result.eps
        for view in range(2):
            ours, exact = self.ours.gradients[view], self.exact.gradients[view]
            cancelled = 64 * self.sum_unit * self.scales.gradient[view]
            lost += ((ours == 0) & (exact.abs() > (cancelled + underflow)[:, None])).sum().item()
        return lost


def _without_overflow(ours: Tensor, exact: Tensor, largest: float) -> Tensor:
    """The exact elements, if the type cannot hold them and ours have its largest value."""
    overflown = (exact.abs() > 0.99 * largest) & (ours * exact.sign() > 0.98 * largest)
    return torch.where(overflown, exact, ours)


def _largest_value(case: LossCase) -> float:
    is_double = case.features1.dtype == torch.float64
    return torch.finfo(torch.float64 if is_double else torch.float32).max


def compare(
    loss: Loss,
    case: LossCase,
    weights: Tensor | None = None,
    ours: Outcome | None = None,
    **options,
) -> Comparison:
    """``loss`` beside the oracle; ``ours`` if the outcome is known already."""
    weights = upstream(case) if weights is None else weights
    oracle = reference.directional_contrastive_loss
    exact = outcome(oracle, case.to_float64(), weights, **options)
    active = active_of(case, **options)
    multiplication = multiplication_of(case.features1)
    sum_unit = FLOAT64.unit if multiplication is FLOAT64 else FLOAT32.unit
    channels = case.features1.shape[1] if multiplication.rounds_factors else 1
    scales = scales_of(case, exact.losses, weights * active, **options)
    ours = outcome(loss, case, weights, **options) if ours is None else ours
    result = torch.finfo(case.features1.dtype)
    gradients = tuple(
        _without_overflow(x, y, result.max)
        for x, y in zip(ours.gradients, exact.gradients, strict=True)
    )
    losses = ours.losses
    if losses.shape == exact.losses.shape:  # not reduced
        losses = _without_overflow(losses, exact.losses, _largest_value(case))
    return Comparison(
        ours=Outcome(losses, gradients),
        exact=exact,
        active=active,
        scales=scales,
        logit_error=multiplication.unit / channels**0.5 * scales.logit
        + multiplication.exponential
        + sum_unit,
        sum_unit=sum_unit,
        result=result,
        eps=options.get("eps", 0.0),
    )


def _assert_within(name: str, errors: Tensor, row: Tensor, whole: Tensor) -> None:
    # Written so that a nan fails.
    if not (errors <= row).all():
        worst = (errors - row).nan_to_num(torch.inf).argmax().item()
        raise AssertionError(
            f"{name}: error {errors.flatten()[worst]:.2e} of row {worst}, allowed "
            f"{row.flatten()[worst]:.2e}"
        )
    if not errors.norm() <= whole.norm():
        raise AssertionError(
            f"{name}: error {errors.norm():.2e} in norm, allowed {whole.norm():.2e}"
        )


def _assert_gradients(found: Comparison, factors: Factors) -> None:
    for view in range(2):
        bounds = (found.gradient_bound(view, x) for x in factors.gradients)
        _assert_within(f"gradients of features{view + 1}", found.gradient_error(view), *bounds)
        inactive = ~found.active[view]
        assert (found.ours.gradients[view][inactive] == 0).all(), (
            f"an inactive anchor of features{view + 1} has a gradient"
        )
    lost = found.lost_elements()
    assert lost == 0, f"{lost} elements of the gradients are 0 and must not be"


def assert_close_to_oracle(case: LossCase, loss: Loss | None = None, **options) -> None:
    """Losses [2, A] and gradients equal the oracle's up to rounding.

    Args:
        case: The inputs, of any type.
        loss: Called like `cac_ext.directional_contrastive_loss`, which it is if left out.
        options: Passed to the loss and to the oracle.
    """
    found = compare(loss or cac_ext.directional_contrastive_loss, case, **options)
    factors = FACTORS[multiplication_of(case.features1)]
    _assert_within("losses", found.loss_error(), *(found.loss_bound(x) for x in factors.losses))
    assert (found.ours.losses[~found.active] == 0).all(), "an inactive anchor has a loss"
    _assert_gradients(found, factors)


def compare_reduced(
    loss: Loss, case: LossCase, *, reduction: str, weights: Tensor | None = None, **options
) -> tuple[Comparison, Tensor, Callable[[Tensor], Tensor]]:
    """The comparison, the error of the reduced loss, and the reduction of the bounds of rows."""
    pixels = case.features1.shape[0]
    active = active_of(case, **options)
    exact_weights = None if weights is None else weights.double()

    def reduced(losses: Tensor) -> Tensor:
        return reference.reduce_directions(losses, active, exact_weights, reduction)

    terms = torch.ones(2, pixels, dtype=torch.float64, device=active.device, requires_grad=True)
    out = reduced(terms)
    sum_weights = upstream(case, *out.shape, 1)[..., 0].double()
    (coefficients,) = torch.autograd.grad(out, terms, sum_weights)  # [2, A]
    ours = outcome(loss, case, sum_weights, reduction=reduction, weights=weights, **options)
    found = compare(loss, case, coefficients, ours, **options)
    exact = reduced(found.exact.losses)
    assert ours.losses.shape == exact.shape
    rounding = 8 * found.sum_unit * reduced(found.exact.losses.abs())
    error = (_without_overflow(ours.losses, exact, _largest_value(case)) - exact).abs()
    return found, error, lambda bound: reduced(bound) + rounding


def assert_reductions_equal_oracle(
    case: LossCase,
    loss: Loss | None = None,
    *,
    reduction: str = "active_mean",
    weighted: bool = False,
    **options,
) -> None:
    """The reduced loss and its gradients equal the oracle's; arguments as above."""
    found, error, reduced = compare_reduced(
        loss or cac_ext.directional_contrastive_loss,
        case,
        reduction=reduction,
        weights=upstream(case, len(case.features1)).float() / 512 if weighted else None,
        **options,
    )
    factors = FACTORS[multiplication_of(case.features1)]
    allowed = reduced(found.loss_bound(factors.losses[1]))
    _assert_within(f"loss reduced by {reduction}", error, allowed, allowed)
    _assert_gradients(found, factors)


def assert_logsumexp_close_to_oracle(case: LossCase, logsumexp: Loss | None = None, **options):
    """`masked_logsumexp` of view 1 and its gradient equal the oracle's; arguments as above."""
    exact_case = case.to_float64()
    weights = upstream(case, len(case.features1))  # [A]
    results = []
    for function, x in (
        (logsumexp or cac_ext.masked_logsumexp, case),
        (reference.masked_logsumexp, exact_case),
    ):
        anchors = x.features1.clone().requires_grad_()
        values = function(anchors, x.negatives, x.pseudo_labels1, x.negative_labels, **options)
        finite = torch.where(values.isneginf(), torch.zeros_like(values), values)
        finite.backward(weights.to(values.dtype))
        results.append((values.detach().double(), finite.detach().double(), anchors.grad.double()))
    (values, finite, gradient), (exact_values, exact_finite, exact_gradient) = results
    assert torch.equal(values.isneginf(), exact_values.isneginf())
    multiplication, temperature = multiplication_of(case.features1), options.get("temperature", 0.1)
    factors = FACTORS[multiplication]
    sum_unit = FLOAT64.unit if multiplication is FLOAT64 else FLOAT32.unit
    channels = case.features1.shape[1] if multiplication.rounds_factors else 1
    error = multiplication.unit / channels**0.5 / temperature
    error += multiplication.exponential + sum_unit
    rounding = 2 * sum_unit * exact_finite.abs()
    _assert_within(
        "log-sum-exp",
        (finite - exact_finite).abs(),
        *(x * error + rounding for x in factors.losses),
    )
    lengths = exact_case.features1.norm(dim=1)
    result = torch.finfo(case.features1.dtype)
    rounding = result.eps * exact_gradient.norm(dim=1) + result.smallest_normal * result.eps
    _assert_within(
        "gradient of the log-sum-exp",
        (gradient - exact_gradient).norm(dim=1),
        *(2 * weights * x * error / (temperature * lengths) + rounding for x in factors.gradients),
    )
    empty = exact_gradient.abs().amax(dim=1) == 0
    assert (gradient[empty] == 0).all(), "an anchor without a value has a gradient"
