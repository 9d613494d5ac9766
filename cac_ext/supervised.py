"""Contrastive losses with many positives for each anchor: the keys of its own label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext._arguments import (
    as_ignore_index,
    as_num_valid,
    as_temperature,
    cast_for_autocast,
    reject_tangent,
    require_flag,
    require_tensors,
)
from cac_ext._calls import apply, require_fitting, temperature_tensor, wants_gradient
from cac_ext.contrast_ops import ClassRows, ClassSums, Contrast, PairwiseContrast, call
from cac_ext.negatives import prepare_ranked

_FORMS = ("supcon", "pairwise")
_MIN_NORM = 1e-12  # shorter rows have no direction, as in torch.nn.functional.normalize


def supervised_contrastive_loss(
    anchors: Tensor,
    keys: Tensor,
    anchor_labels: Tensor,
    key_labels: Tensor,
    *,
    form: str = "supcon",
    active: Tensor | None = None,
    exclude: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    num_valid: int | Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """The contrastive loss of each anchor whose positives P are the keys of its label.

    With s(a, k) = cos(a, k) / tau:

    * "supcon": ``log sum_k exp s(a, k) - mean_P s(a, p)``, k over all keys but the excluded one
      (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, Eq. 2).
    * "pairwise": ``mean_P -log exp s(a, p) / (exp s(a, p) + sum_n exp s(a, n))``, n over the keys
      of other labels (Wang et al., "Exploring Cross-Image Pixel Contrast", ICCV 2021, Eq. 3).

    The gradient reaches whatever asks for it: anchors, keys (also if they are the anchors), and a
    temperature given as a tensor. Memory does not grow with A x N.

    Args:
        anchors: [A, C] features.
        keys: [N, C] features, of the same type; may be the anchors themselves.
        anchor_labels, key_labels: [A], [N] integer labels.
        form: "supcon" or "pairwise".
        active: [A] bool; False gives loss and gradient 0. None: all True.
        exclude: [A] int64, the row of ``keys`` that is neither positive nor negative for this
            anchor, as its own copy among them; -1: none.
        temperature: tau > 0, a number or a tensor of one number.
        normalize: True compares directions (cosine), False dot products.
        num_valid: Only the first so many keys count; a number or an integer tensor [].
        ignore_index: A label that takes no part, of anchors and of keys.

    Returns:
        [A] float32 (float64 for float64), 0 where an anchor has no positive.

    Raises:
        ValueError, TypeError, RuntimeError: see `cac_ext.directional_contrastive_loss`.
    """
    if form not in _FORMS:
        raise ValueError(f"form must be {' or '.join(map(repr, _FORMS))}, but got {form!r}")
    temperature = as_temperature(temperature)
    require_flag(normalize, "normalize")
    ignore_index = as_ignore_index(ignore_index)
    require_tensors(keys=keys, key_labels=key_labels)
    optional = {"active": active, "exclude": exclude}
    require_fitting({"anchors": anchors}, {"anchor_labels": anchor_labels}, optional, keys)
    for name, x in (("anchors", anchors), ("keys", keys)):
        reject_tangent(x, name)
    anchors, keys = cast_for_autocast(anchors, keys)
    valid = as_num_valid(num_valid)
    parts, rank = prepare_ranked(keys, key_labels, normalize, ignore_index, valid)
    tau = temperature_tensor(temperature)
    with_gradient = wants_gradient(anchors, keys, tau)
    differentiated = keys if torch.is_grad_enabled() and keys.requires_grad else None
    if form == "pairwise":
        loss, _, _ = apply(
            "pairwise_contrast",
            PairwiseContrast,
            anchors,
            differentiated,
            tau,
            anchor_labels,
            active,
            exclude,
            parts.features,
            parts.labels,
            rank,
            parts.num_valid,
            normalize,
            ignore_index,
            with_gradient,
        )
        return loss

    counted = rank < parts.num_valid  # [N]
    if differentiated is None:
        keys = keys.detach()
    if num_valid is not None:  # what is not in use may hold anything
        keys = torch.where(counted[:, None], keys, 0.0)
    means, count = _means_of_own_class(
        _unit(keys, normalize), anchor_labels, key_labels, counted, exclude
    )
    takes_part = count > 0  # [A]
    if active is not None:
        takes_part = takes_part & active
    if ignore_index is not None:
        takes_part = takes_part & (anchor_labels != ignore_index)
    log_sum, _, _ = apply(
        "contrast",
        Contrast,
        anchors,
        None,
        differentiated,
        tau,
        anchor_labels,
        takes_part,
        exclude,
        parts.features,
        parts.labels,
        rank,
        parts.leading_rows,
        parts.num_valid,
        "all",
        normalize,
        0.0,
        ignore_index,
        with_gradient,
    )
    score = (_unit(anchors, normalize) * means).sum(dim=1) / tau.to(means)
    return torch.where(takes_part, log_sum - score, 0.0)


def _unit(features: Tensor, normalize: bool) -> Tensor:
    """Rows of unit length, float32 or float64. One without direction has the gradient 0."""
    if features.dtype != torch.float64:
        features = features.float()
    if not normalize:
        return features
    # Squares of larger elements leave the range of float32; division by a constant changes nothing.
    largest = features.detach().abs().amax(dim=1, keepdim=True)
    features = features / torch.where(largest > 1e15, largest, 1.0)
    short = features.detach().norm(dim=1, keepdim=True) <= _MIN_NORM
    constant = features.detach() / _MIN_NORM
    return torch.where(short, constant, F.normalize(torch.where(short, 1.0, features), dim=1))


def _means_of_own_class(
    unit_keys: Tensor,  # [N, C]
    anchor_labels: Tensor,  # [A]
    key_labels: Tensor,  # [N]
    counted: Tensor,  # [N] bool
    exclude: Tensor | None,  # [A]
) -> tuple[Tensor, Tensor]:
    """The mean key of each anchor's positives, [A, C], and their number, [A]."""
    anchors = anchor_labels.shape[0]
    # A class has the number of its first anchor in the order of labels; number A is for all others.
    ordered = F.pad(anchor_labels.long().sort().values, (0, 1))
    number = torch.searchsorted(ordered[:anchors], anchor_labels.long())  # [A]
    number_of_keys = torch.searchsorted(ordered[:anchors], key_labels.long())  # [N]
    known = counted & (ordered[number_of_keys] == key_labels) & (number_of_keys < anchors)
    number_of_keys = torch.where(known, number_of_keys, anchors)
    sums = call("class_sums", ClassSums, unit_keys, number_of_keys, anchors + 1)  # [A + 1, C]
    counts = torch.zeros_like(ordered).scatter_add_(
        0, number_of_keys, torch.ones_like(number_of_keys)
    )
    total = call("class_rows", ClassRows, sums, number)
    count = counts[number]
    if exclude is not None and unit_keys.shape[0] > 0:
        place = exclude.clamp(min=0)
        is_positive = (exclude >= 0) & (number_of_keys[place] == number)
        own = call("class_rows", ClassRows, unit_keys, place)
        total = total - torch.where(is_positive[:, None], own, 0.0)
        count = count - is_positive.long()
    return total / count.clamp(min=1)[:, None], count
