"""Wrong losses made from the right one: each is off as a broken kernel or formula would be.

They are called like `cac_ext.directional_contrastive_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cac_ext

loss = cac_ext.directional_contrastive_loss

#: Anchors that a tile of a kernel holds together.
TILE = 16


class _AlterGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, alter: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.alter = alter
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.alter(gradient), None


def _with_gradient(alter: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def mutant(features1: Tensor, features2: Tensor, *rest: Tensor, **options) -> Tensor:
        altered = (_AlterGradient.apply(x, alter) for x in (features1, features2))
        return loss(*altered, *rest, **options)

    return mutant


def _without_small_elements(gradient: Tensor) -> Tensor:
    limit = 1e-3 * gradient.norm(dim=1, keepdim=True)
    return torch.where(gradient.abs() < limit, torch.zeros_like(gradient), gradient)


def _without_last_channels(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[:, -max(gradient.shape[1] % 8, 1) :] = 0
    return gradient


def _without_last_rows(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[-max(gradient.shape[0] % TILE, 1) :] = 0
    return gradient


def _with_rows_swapped(gradient: Tensor) -> Tensor:
    return gradient.roll(1, dims=0)


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * factor


def own_class_negative_counted(x1, x2, c1, c2, y1, y2, negatives, labels, **options):
    labels = labels.clone()
    labels[-1] = 10**6
    return loss(x1, x2, c1, c2, y1, y2, negatives, labels, **options)


def every_negative_counted(x1, x2, c1, c2, y1, y2, negatives, labels, **options):
    return loss(x1, x2, c1, c2, y1, y2, negatives, labels * 0 - 1, **options)


def last_negative_lost(x1, x2, c1, c2, y1, y2, negatives, labels, **options):
    return loss(x1, x2, c1, c2, y1, y2, negatives[:-1], labels[:-1], **options)


def last_negative_counted_twice(x1, x2, c1, c2, y1, y2, negatives, labels, **options):
    negatives = torch.cat([negatives, negatives[-1:]])
    return loss(x1, x2, c1, c2, y1, y2, negatives, torch.cat([labels, labels[-1:]]), **options)


def last_channel_of_negatives_lost(x1, x2, c1, c2, y1, y2, negatives, labels, **options):
    negatives = negatives.clone()
    negatives[:, -1] = 0
    return loss(x1, x2, c1, c2, y1, y2, negatives, labels, **options)


def last_anchors_lost(x1, x2, c1, c2, *rest, **options):
    c1 = c1.clone()
    last = max(len(c1) % TILE, 1)
    c1[-last:] = c2[-last:]
    return loss(x1, x2, c1, c2, *rest, **options)


def temperature_applied_twice(*arguments, temperature=0.1, **options):
    return loss(*arguments, temperature=temperature**2, **options)


def temperature_a_little_off(*arguments, temperature=0.1, **options):
    return loss(*arguments, temperature=temperature * 1.01, **options)


def directions_swapped(x1, x2, c1, c2, y1, y2, negatives, labels, **options):
    return loss(x1, x2, c2, c1, y1, y2, negatives, labels, **options)


def labels_of_the_other_view(x1, x2, c1, c2, y1, y2, negatives, labels, **options):
    return loss(x1, x2, c1, c2, y2, y1, negatives, labels, **options)


def threshold_not_strict(*arguments, confidence_threshold=0.75, **options):
    return loss(*arguments, confidence_threshold=confidence_threshold - 1 / 128, **options)


def threshold_left_out(*arguments, confidence_threshold=0.75, **options):
    return loss(*arguments, confidence_threshold=0.0, **options)


def equal_confidences_active(x1, x2, c1, c2, *rest, **options):
    return loss(x1, x2, torch.where(c1 == c2, c1 - 1 / 128, c1), c2, *rest, **options)


def lengths_left_in(x1, x2, *rest, **options):
    return loss(x1, x2, *rest, **{**options, "normalize": False})


def positive_left_out_of_the_denominator(
    x1, x2, c1, c2, y1, y2, negatives, labels, *, temperature=0.1, reduction, **options
):
    right = loss(
        x1, x2, c1, c2, y1, y2, negatives, labels,
        temperature=temperature, reduction=reduction, **options,
    )  # fmt: skip
    # log(S / r_p) = log(e^loss - 1).
    return torch.where(right > 0, right.double().expm1().clamp(min=1e-300).log(), 0).to(right)


def softplus_cut_off(*arguments, **options):
    right = loss(*arguments, **options)
    return torch.where(right < 1e-4, torch.zeros_like(right), right)


def eps_left_out(*arguments, eps=0.0, **options):
    return loss(*arguments, **options)


def eps_doubled(*arguments, eps=0.0, **options):
    return loss(*arguments, eps=2 * eps, **options)


def no_label_ignored(*arguments, ignore_index=None, **options):
    return loss(*arguments, **options)


def _halved(reduction: str) -> Callable[..., Tensor]:
    def mutant(*arguments, **options):
        value = loss(*arguments, **options)
        return value / 2 if options["reduction"] == reduction else value

    return mutant


def sums_divided_by_all_pixels(*arguments, **options):
    if options["reduction"] == "active_mean":
        options["reduction"] = "mean"
    return loss(*arguments, **options)


def weights_left_out(*arguments, weights=None, **options):
    return loss(*arguments, **options)


def weights_counted_in_the_mean(*arguments, weights=None, **options):
    value = loss(*arguments, weights=weights, **options)
    return value if weights is None else value / weights.mean()


#: Wrong in the losses of anchors or in their gradients.
OF_ANCHORS = {
    "gradient of zeros": _with_gradient(_times(0.0)),
    "gradient halved": _with_gradient(_times(0.5)),
    "gradient off by 5%": _with_gradient(_times(1.05)),
    "gradient without small elements": _with_gradient(_without_small_elements),
    "gradient without the last channels": _with_gradient(_without_last_channels),
    "gradient without the last rows": _with_gradient(_without_last_rows),
    "gradient of the neighbor": _with_gradient(_with_rows_swapped),
    "own class's negative counted": own_class_negative_counted,
    "every negative counted": every_negative_counted,
    "last negative lost": last_negative_lost,
    "last negative counted twice": last_negative_counted_twice,
    "last channel of the negatives lost": last_channel_of_negatives_lost,
    "last anchors lost": last_anchors_lost,
    "temperature applied twice": temperature_applied_twice,
    "temperature 1% off": temperature_a_little_off,
    "directions swapped": directions_swapped,
    "labels of the other view": labels_of_the_other_view,
    "threshold not strict": threshold_not_strict,
    "threshold left out": threshold_left_out,
    "equal confidences active": equal_confidences_active,
    "lengths left in": lengths_left_in,
    "positive left out of the denominator": positive_left_out_of_the_denominator,
    "small losses cut off": softplus_cut_off,
}

#: Wrong with ``eps`` of the authors' code.
OF_EPS = {"eps left out": eps_left_out, "eps doubled": eps_doubled}

#: Wrong in a reduction.
OF_REDUCTIONS = {
    **{f"{x} halved": _halved(x) for x in ("active_mean", "active_mean_each", "mean", "sum")},
    "active mean over all pixels": sums_divided_by_all_pixels,
    "weights left out": weights_left_out,
    "weights counted in the mean": weights_counted_in_the_mean,
}
