"""One direction of the contrastive loss and its masked log-sum-exp, with every mask.

Shapes: A anchors, N negatives, C channels. None of these functions ever holds an A x N matrix.
`cac_ext.directional_contrastive_loss` documents the accuracy for each type of features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cac_ext._arguments import (
    as_ignore_index,
    as_num_valid,
    as_number,
    as_temperature,
    cast_for_autocast,
    reject_tangent,
    require_flag,
    require_mask,
    require_tensors,
)
from cac_ext._calls import (
    apply,
    missing_labels,
    prepared_parts,
    require_fitting,
    temperature_tensor,
    wants_gradient,
)
from cac_ext.contrast_ops import Contrast
from cac_ext.negatives import PreparedNegatives, PreparedParts, prepare_ranked
from cac_ext.ops import MaskedContrastiveLoss, MaskedLogSumExp


def masked_logsumexp(
    anchors: Tensor,
    negatives: Tensor | PreparedNegatives,
    anchor_labels: Tensor | None = None,
    negative_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    mask: str = "different",
    exclude: Tensor | None = None,
    num_valid: int | Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """``log sum_j [j counts] exp(cos(a_i, n_j) / tau)``: the negatives' part of Eq. 5.

    Args:
        anchors: [A, C] features.
        negatives: [N, C] features, or `PreparedNegatives`, which are constants.
        anchor_labels: [A] integer labels; needed unless ``mask`` is "all".
        negative_labels: [N] integer labels; leave them out with `PreparedNegatives`.
        temperature, normalize, mask, exclude, num_valid, ignore_index: As in
            `masked_contrastive_loss`.

    Returns:
        [A] float32 (float64 for float64), -inf where no negative counts, 0 for an ignored anchor.

    Raises:
        ValueError, TypeError, RuntimeError: see `directional_contrastive_loss`.
    """
    return _contrast(
        anchors,
        None,
        negatives,
        anchor_labels,
        negative_labels,
        None,
        as_temperature(temperature),
        normalize,
        0.0,
        mask,
        exclude,
        num_valid,
        as_ignore_index(ignore_index),
    )


def masked_contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor | PreparedNegatives,
    anchor_labels: Tensor | None = None,
    negative_labels: Tensor | None = None,
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
    """``-log r(a, p) / (r(a, p) + sum_j [j counts] r(a, n_j))`` of each anchor (Eq. 1, 5).

    The gradient reaches whatever asks for it: anchors, positives, negatives, and a temperature
    given as a tensor. That of the negatives takes a second pass. Detach what the paper holds fixed.

    Args:
        anchors: [A, C] features.
        positives: [A, C] features, one for each anchor.
        negatives: [N, C] features, or `PreparedNegatives`, which are constants.
        anchor_labels: [A] integer labels; needed unless ``mask`` is "all".
        negative_labels: [N] integer labels; leave them out with `PreparedNegatives`.
        active: [A] bool; False costs nothing and gives loss and gradient 0. None: all True.
        temperature: tau > 0, a number or a tensor of one number. The host does not wait for one on
            a GPU.
        normalize: As in `directional_contrastive_loss`.
        eps: As in `directional_contrastive_loss`.
        mask: Which negatives count for an anchor: those of a "different" label, of the "same"
            label, or "all".
        exclude: [A] int64, a row of ``negatives`` that does not count for this anchor, as its own
            copy among them; -1: none. Not with `PreparedNegatives`.
        num_valid: Only the first so many negatives count, as in a queue that is filled partly: a
            number, or an integer tensor [], which a GPU need not wait for.
        ignore_index: A label that takes no part: anchors with it have loss and gradient 0, and
            negatives with it count for no anchor.

    Returns:
        [A] float32 (float64 for float64).

    Raises:
        ValueError, TypeError, RuntimeError: see `directional_contrastive_loss`.
    """
    require_tensors(positives=positives)
    return _contrast(
        anchors,
        positives,
        negatives,
        anchor_labels,
        negative_labels,
        active,
        as_temperature(temperature),
        normalize,
        as_number(eps, "eps"),
        mask,
        exclude,
        num_valid,
        as_ignore_index(ignore_index),
    )


def _contrast(
    anchors: Tensor,
    positives: Tensor | None,
    negatives: Tensor | PreparedNegatives,
    anchor_labels: Tensor | None,
    negative_labels: Tensor | None,
    active: Tensor | None,
    temperature: float | Tensor,
    normalize: bool,
    eps: float,
    mask: str,
    exclude: Tensor | None,
    num_valid: int | Tensor | None,
    ignore_index: int | None,
) -> Tensor:
    require_flag(normalize, "normalize")
    require_mask(mask)
    features = {"anchors": anchors} | ({} if positives is None else {"positives": positives})
    optional = {"anchor_labels": anchor_labels, "active": active, "exclude": exclude}
    require_fitting(features, {}, optional, negatives)
    if anchor_labels is None and mask != "all":
        raise ValueError(
            f"anchor_labels are missing: mask={mask!r} compares them with the negatives' labels. "
            'Pass one integer label [A] for each anchor, or mask="all"'
        )
    if exclude is not None and isinstance(negatives, PreparedNegatives):
        raise ValueError(
            "exclude numbers the negatives as given, and PreparedNegatives are sorted: pass the "
            "negatives themselves"
        )
    for name, x in (("positives", positives), ("negatives", negatives)):
        if isinstance(x, Tensor):
            reject_tangent(x, name)
    anchors = cast_for_autocast(anchors)[0]
    if positives is not None:
        positives = cast_for_autocast(positives)[0]
    others = [x for x in (positives, negatives, temperature) if isinstance(x, Tensor)]
    others_learn = torch.is_grad_enabled() and any(x.requires_grad for x in others)
    valid = as_num_valid(num_valid)
    if (
        anchor_labels is not None
        and mask == "different"
        and exclude is None
        and not isinstance(temperature, Tensor)
        and not others_learn
    ):
        parts = prepared_parts(negatives, negative_labels, normalize, ignore_index, valid)
        return _for_anchors_alone(
            anchors, positives, parts, anchor_labels, active, temperature, normalize, eps,
            ignore_index,
        )  # fmt: skip
    keys = None
    rank = None
    if isinstance(negatives, PreparedNegatives):
        parts = prepared_parts(negatives, negative_labels, normalize, ignore_index, valid)
    else:
        if negative_labels is None and mask != "all":
            raise missing_labels()
        negatives = cast_for_autocast(negatives)[0]
        parts, rank = prepare_ranked(negatives, negative_labels, normalize, ignore_index, valid)
        if torch.is_grad_enabled() and negatives.requires_grad:
            keys = negatives
    value, _, _ = apply(
        "contrast",
        Contrast,
        anchors,
        positives,
        keys,
        temperature_tensor(temperature),
        anchor_labels,
        active,
        exclude,
        parts.features,
        parts.labels,
        rank,
        parts.leading_rows,
        parts.num_valid,
        mask,
        normalize,
        eps,
        ignore_index,
        wants_gradient(anchors, *others),
    )
    return value


def _for_anchors_alone(
    anchors: Tensor,
    positives: Tensor | None,
    parts: PreparedParts,
    anchor_labels: Tensor,
    active: Tensor | None,
    temperature: float,
    normalize: bool,
    eps: float,
    ignore_index: int | None,
) -> Tensor:
    """The paper's own case, which also has forward-mode derivatives."""
    if positives is None:
        value, _ = apply(
            "masked_logsumexp",
            MaskedLogSumExp,
            anchors,
            parts.features,
            anchor_labels,
            parts.labels,
            parts.num_valid,
            temperature,
            normalize,
            ignore_index,
            wants_gradient(anchors),
        )
        return value
    loss, _ = apply(
        "masked_contrastive_loss",
        MaskedContrastiveLoss,
        anchors,
        positives,
        parts.features,
        anchor_labels,
        parts.labels,
        parts.leading_rows,
        parts.num_valid,
        active,
        temperature,
        normalize,
        eps,
        ignore_index,
        wants_gradient(anchors),
    )
    return loss
