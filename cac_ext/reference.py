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
    negatives: Tensor,  # [N, C]
    labels: Tensor | None,  # [N]
    exclude: Tensor | None,  # [A]
    num_valid: int | Tensor | None,
    ignore_index: int | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The negatives that have a label and are in use, with ``exclude`` renumbered."""
    counted = torch.ones_like(negatives[:, 0], dtype=torch.bool)
    if num_valid is not None:
        counted &= torch.arange(len(counted), device=counted.device) < num_valid
    if ignore_index is not None and labels is not None:
        counted &= labels != ignore_index
    if exclude is not None:
        places = torch.where(counted, counted.cumsum(0) - 1, -1)
        exclude = torch.cat([places, places.new_tensor([-1])])[exclude]
    return negatives[counted], None if labels is None else labels[counted], exclude


def _counted(
    anchors: Tensor,  # [A, C]
    negatives: Tensor,  # [N, C]
    anchor_labels: Tensor | None,
    negative_labels: Tensor | None,
    mask: str,
    exclude: Tensor | None,
) -> Tensor:
    """Which negatives count for which anchors, ``[A, N]`` bool."""
    if mask == "all":
        counted = torch.ones_like(anchors[:, :1] * negatives[:, 0], dtype=torch.bool)
    else:
        assert anchor_labels is not None, "anchor_labels are missing"
        assert negative_labels is not None, "negative_labels are missing"
        equal = anchor_labels[:, None].eq(negative_labels)
        counted = equal if mask == "same" else ~equal
    if exclude is not None:
        counted = counted & (
            torch.arange(len(negatives), device=exclude.device) != exclude[:, None]
        )
    return counted


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
    anchor_labels: Tensor | None = None,  # [A]
    negative_labels: Tensor | None = None,  # [N]
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    mask: str = "different",
    exclude: Tensor | None = None,
    num_valid: int | Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """``log sum_j [j counts] exp(cos(a_i, n_j) / tau)``, the denominator's negatives (Eq. 5).

    Negatives labelled ``ignore_index`` are left out; anchors so labelled have the value 0.
    """
    negatives, negative_labels, exclude = _without_ignored(
        negatives, negative_labels, exclude, num_valid, ignore_index
    )
    has_label = None
    if ignore_index is not None and anchor_labels is not None:
        has_label = anchor_labels != ignore_index
    unit_anchors = _unit(_select(has_label, anchors), normalize)  # [A, C]
    logits = unit_anchors @ _unit(negatives, normalize).T / temperature  # [A, N]
    counted = _counted(anchors, negatives, anchor_labels, negative_labels, mask, exclude)
    values = _logsumexp(logits, counted)  # [A]
    return values if has_label is None else values.masked_fill(~has_label, 0.0)


def masked_contrastive_loss(
    anchors: Tensor,  # [A, C]
    positives: Tensor,  # [A, C]
    negatives: Tensor,  # [N, C]
    anchor_labels: Tensor | None = None,  # [A]
    negative_labels: Tensor | None = None,  # [N]
    *,
    active: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    eps: float = 0.0,
    mask: str = "different",
    exclude: Tensor | None = None,
    num_valid: int | Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """``-log r(a, p) / (r(a, p) + sum_n [n counts] r(a, n))`` for each anchor (Eq. 1, 5), ``[A]``.

    ``eps`` > 0 follows the authors' code: it is added to the denominator, in units of the row's
    maximum over the positive and the first ``LEADING_CHUNK`` negatives (whatever their class), and
    again inside the logarithm. The maximum counts as a constant.

    Negatives labelled ``ignore_index`` are left out, as if they had not been given; anchors so
    labelled are inactive.
    """
    negatives, negative_labels, exclude = _without_ignored(
        negatives, negative_labels, exclude, num_valid, ignore_index
    )
    if ignore_index is not None and anchor_labels is not None:
        has_label = anchor_labels != ignore_index
        active = has_label if active is None else active & has_label
    unit_anchors = _unit(_select(active, anchors), normalize)  # [A, C]
    unit_positives = _unit(_select(active, positives), normalize)  # [A, C]
    positive = (unit_anchors * unit_positives).sum(-1) / temperature  # [A]
    logits = unit_anchors @ _unit(negatives, normalize).T / temperature  # [A, N]
    counted = _counted(anchors, negatives, anchor_labels, negative_labels, mask, exclude)
    if active is not None:  # an inactive anchor reaches no negative
        counted = counted & active[:, None]
    logsumexp = _logsumexp(logits, counted)  # [A]
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


def supervised_contrastive_loss(
    anchors: Tensor,  # [A, C]
    keys: Tensor,  # [N, C]
    anchor_labels: Tensor,  # [A]
    key_labels: Tensor,  # [N]
    *,
    form: str = "supcon",
    active: Tensor | None = None,
    exclude: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    num_valid: int | Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """As `cac_ext.supervised_contrastive_loss` documents it, ``[A]``."""
    keys, labels, exclude = _without_ignored(keys, key_labels, exclude, num_valid, ignore_index)
    scores = _unit(anchors, normalize) @ _unit(keys, normalize).T / temperature  # [A, N]

    def counted(mask: str) -> Tensor:
        return _counted(anchors, keys, anchor_labels, labels, mask, exclude)

    positive = counted("same")
    count = positive.sum(dim=1)  # [A]
    if form == "supcon":
        terms = _logsumexp(scores, counted("all"))[:, None] - scores  # [A, N]
    else:
        margin = _logsumexp(scores, counted("different"))[:, None] - scores
        terms = torch.logaddexp(margin, torch.zeros_like(margin))
    mean = torch.where(positive, terms, 0.0).sum(dim=1) / count.clamp(min=1)
    takes_part = count > 0
    if active is not None:
        takes_part = takes_part & active
    if ignore_index is not None:
        takes_part = takes_part & (anchor_labels != ignore_index)
    return torch.where(takes_part, mean, 0.0)


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
    temperature: float | Tensor = ...,
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
    temperature: float | Tensor = ...,
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
    temperature: float | Tensor = 0.1,
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
                positives.detach(),
                negatives.detach(),
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
