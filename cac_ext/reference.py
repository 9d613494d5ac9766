"""Eager PyTorch oracle of the fused loss, written to be read beside the paper's equations.

Every function holds the whole ``[A, N]`` matrix and leaves the gradient to autograd. Use it with
float64 inputs to judge an implementation, never to train: at the paper's size the matrix of one
direction alone takes 1.3 GB in float32. It shares no code with the implementations that it judges.

Source: Lai et al., "Semi-supervised Semantic Segmentation with Directional Context-aware
Consistency", CVPR 2021, Eq. 1-8.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

#: Chunk of negatives over which the authors' code takes the row maximum (only with ``eps`` > 0).
LEADING_CHUNK = 8000

#: Length at or below which a vector has no direction, as in `torch.nn.functional.normalize`.
MIN_NORM = 1e-12


def _unit(features: Tensor, normalize: bool) -> Tensor:
    """``x / max(|x|, 1e-12)`` of each row; a row without a direction has the gradient zero."""
    if not normalize or features.numel() == 0:
        return features
    # A power of two near the largest element: without it squares overflow from 1e154 on.
    largest = features.detach().abs().amax(dim=-1, keepdim=True).double()  # [R, 1]
    usable = largest.isfinite() & (largest > 0)
    scale = (2.0 ** largest.where(usable, torch.ones_like(largest)).log2().floor()).to(features)
    length = (features.detach() / scale).norm(dim=-1, keepdim=True) * scale  # [R, 1]
    short = length <= MIN_NORM  # false for nan: the whole row becomes nan
    scaled = features.masked_fill(short, 1.0) / scale.masked_fill(short, 1.0)
    return torch.where(
        short, features.detach() / MIN_NORM, scaled / scaled.norm(dim=-1, keepdim=True)
    )


def _without_ignored(
    negatives: Tensor, labels: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Negatives [N, C] and labels [N] of those that have one; no gradient reaches them."""
    negatives = negatives.detach()
    if ignore_index is None:
        return negatives, labels
    has_label = labels != ignore_index
    return negatives[has_label], labels[has_label]


def _select(active: Tensor | None, anchors: Tensor) -> Tensor:
    """Anchors [A, C] whose inactive rows are constants: their gradient is 0, beside a nan too."""
    if active is None:
        return anchors
    return torch.where(active[:, None], anchors, torch.ones_like(anchors))


def _logsumexp(logits: Tensor, counted: Tensor) -> Tensor:
    """``log sum_j [counted] exp(logit)`` of each row, [A, N] -> [A].

    A row that counts nothing gives -inf and the gradient zero; a nan that counts gives nan.
    """
    empty = ~counted.any(dim=1)  # [A]
    logits = logits.masked_fill(~counted, float("-inf"))
    # logsumexp of an all -inf row has the gradient nan; such rows are replaced before and after.
    values = logits.masked_fill(empty[:, None], 0.0).logsumexp(dim=1)
    return values.masked_fill(empty, float("-inf"))


def masked_logsumexp(
    anchors: Tensor,  # [A, C]
    negatives: Tensor,  # [N, C]
    anchor_labels: Tensor,  # [A]
    negative_labels: Tensor,  # [N]
    *,
    temperature: float = 0.1,
    normalize: bool = True,
    ignore_index: int | None = None,
) -> Tensor:
    """``log sum_j [y_j != y_i] exp(cos(a_i, n_j) / tau)``, the denominator's negatives (Eq. 5).

    Negatives labelled ``ignore_index`` are left out; anchors so labelled have the value 0.
    """
    negatives, negative_labels = _without_ignored(negatives, negative_labels, ignore_index)
    has_label = None if ignore_index is None else anchor_labels != ignore_index
    unit_anchors = _unit(_select(has_label, anchors), normalize)  # [A, C]
    logits = unit_anchors @ _unit(negatives, normalize).T / temperature  # [A, N]
    values = _logsumexp(logits, anchor_labels[:, None] != negative_labels)  # [A]
    return values if has_label is None else values.masked_fill(~has_label, 0.0)


def masked_contrastive_loss(
    anchors: Tensor,  # [A, C]
    positives: Tensor,  # [A, C]
    negatives: Tensor,  # [N, C]
    anchor_labels: Tensor,  # [A]
    negative_labels: Tensor,  # [N]
    *,
    active: Tensor | None = None,
    temperature: float = 0.1,
    normalize: bool = True,
    eps: float = 0.0,
    ignore_index: int | None = None,
) -> Tensor:
    """``-log r(a, p) / (r(a, p) + sum_n [y_n != y] r(a, n))`` for each anchor (Eq. 1, 5), ``[A]``.

    ``eps`` > 0 follows the authors' code: it is added to the denominator, in units of the row's
    maximum over the positive and the first ``LEADING_CHUNK`` negatives (whatever their class), and
    again inside the logarithm. The maximum counts as a constant.

    Negatives labelled ``ignore_index`` are left out, as if they had not been given; anchors so
    labelled are inactive.
    """
    negatives, negative_labels = _without_ignored(negatives, negative_labels, ignore_index)
    if ignore_index is not None:
        has_label = anchor_labels != ignore_index
        active = has_label if active is None else active & has_label
    unit_anchors = _unit(_select(active, anchors), normalize)  # [A, C]
    positive = (unit_anchors * _unit(positives.detach(), normalize)).sum(-1) / temperature  # [A]
    logits = unit_anchors @ _unit(negatives, normalize).T / temperature  # [A, N]
    logsumexp = _logsumexp(logits, anchor_labels[:, None] != negative_labels)  # [A]
    if eps == 0:
        # -log(r_p / (r_p + S)) = log(1 + S / r_p): no cancellation when r_p dominates. (Not
        # softplus, which drops its logarithm above 20.)
        margin = logsumexp - positive
        loss = torch.logaddexp(margin, torch.zeros_like(margin))
    else:
        candidates = torch.cat([positive[:, None], logits[:, :LEADING_CHUNK]], dim=1)
        row_max = candidates.detach().amax(dim=1)  # [A]
        # Logarithms throughout: a negative beyond the chunk may exceed the maximum by far.
        log_positive = positive - row_max
        log_eps = torch.full_like(row_max, math.log(eps))
        log_denominator = torch.stack([log_positive, logsumexp - row_max, log_eps]).logsumexp(dim=0)
        loss = -((log_positive - log_denominator).exp() + eps).log()
    return loss if active is None else torch.where(active, loss, torch.zeros_like(loss))


def direction_masks(
    confidences1: Tensor, confidences2: Tensor, confidence_threshold: float
) -> Tensor:
    """The two directional masks ``M`` (Eq. 7), ``[2, A]`` bool: row 0 for view 1 -> view 2."""
    first_to_second = (confidences1 < confidences2) & (confidences2 > confidence_threshold)
    second_to_first = (confidences2 < confidences1) & (confidences1 > confidence_threshold)
    return torch.stack([first_to_second, second_to_first])


def reduce_directions(
    loss: Tensor,  # [2, A]
    active: Tensor,  # [2, A] bool
    weights: Tensor | None,  # [A]
    reduction: str,
) -> Tensor:
    """The losses of both directions, reduced: [2, A], [2] or a scalar."""
    if weights is not None:
        loss = loss * weights
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / max(loss.shape[1], 1)
    # An empty direction adds 0, as the authors' sum / (count + 1e-12) does.
    active_means = loss.sum(dim=1) / active.sum(dim=1).clamp(min=1)  # [2]
    if reduction == "active_mean_each":
        return active_means
    if reduction == "active_mean":
        return active_means.sum()
    raise ValueError(
        "reduction must be 'active_mean', 'active_mean_each', 'mean', 'sum' or 'none', but got "
        f"{reduction!r}"
    )


@overload
def directional_contrastive_loss(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    pseudo_labels1: Tensor,
    pseudo_labels2: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
    *,
    temperature: float = ...,
    confidence_threshold: float = ...,
    weights: Tensor | None = ...,
    reduction: str = ...,
    normalize: bool = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_direction: Literal[False] = ...,
) -> Tensor: ...


@overload
def directional_contrastive_loss(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    pseudo_labels1: Tensor,
    pseudo_labels2: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
    *,
    temperature: float = ...,
    confidence_threshold: float = ...,
    weights: Tensor | None = ...,
    reduction: str = ...,
    normalize: bool = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_direction: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def directional_contrastive_loss(
    features1: Tensor,  # [A, C]
    features2: Tensor,  # [A, C]
    confidences1: Tensor,  # [A]
    confidences2: Tensor,  # [A]
    pseudo_labels1: Tensor,  # [A]
    pseudo_labels2: Tensor,  # [A]
    negatives: Tensor,  # [N, C]
    negative_labels: Tensor,  # [N]
    *,
    temperature: float = 0.1,
    confidence_threshold: float = 0.75,
    weights: Tensor | None = None,
    reduction: str = "active_mean",
    normalize: bool = True,
    eps: float = 0.0,
    ignore_index: int | None = None,
    return_direction: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The directional contrastive loss of both directions (Eq. 1-8).

    A pixel whose anchor's label is ``ignore_index`` is inactive in that direction. With
    ``return_direction`` the direction of each pixel as well, [A]: 1, 2, or 0 for no anchor.
    """
    active = direction_masks(confidences1, confidences2, confidence_threshold)  # [2, A]
    views = ((features1, features2, pseudo_labels1), (features2, features1, pseudo_labels2))
    if ignore_index is not None:
        active = active & torch.stack([labels != ignore_index for _, _, labels in views])
    losses = torch.stack(
        [
            masked_contrastive_loss(
                anchors,
                positives,
                negatives,
                labels,
                negative_labels,
                active=active[direction],
                temperature=temperature,
                normalize=normalize,
                eps=eps,
                ignore_index=ignore_index,
            )
            for direction, (anchors, positives, labels) in enumerate(views)
        ]
    )  # [2, A]
    loss = reduce_directions(losses, active, weights, reduction)
    return (loss, active[0] + 2 * active[1]) if return_direction else loss
