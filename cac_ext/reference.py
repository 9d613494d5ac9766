"""Eager PyTorch oracle of the fused loss, written to be read beside the paper's equations.

Every function holds the whole ``[A, N]`` matrix and leaves the gradient to autograd. Use it with
float64 inputs to judge an implementation, never to train: at the paper's size the matrix alone
takes 1.3 GB a direction in float32.

Source: Lai et al., "Semi-supervised Semantic Segmentation with Directional Context-aware
Consistency", CVPR 2021, Eq. 1-8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Chunk of negatives over which the authors' code takes the row maximum (only with ``eps`` > 0).
LEADING_CHUNK = 8000


def _unit(features: Tensor, normalize: bool) -> Tensor:
    return F.normalize(features, dim=-1) if normalize else features


def _logits(
    anchors: Tensor,  # [A, C]
    negatives: Tensor,  # [N, C]
    anchor_labels: Tensor,  # [A]
    negative_labels: Tensor,  # [N]
    temperature: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """``cos(a_i, n_j) / tau`` [A, N], and the same with ``-inf`` where the labels agree."""
    logits = _unit(anchors, normalize) @ _unit(negatives.detach(), normalize).T / temperature
    same_class = anchor_labels[:, None] == negative_labels[None, :]
    return logits, logits.masked_fill(same_class, float("-inf"))


def _logsumexp(masked_logits: Tensor) -> Tensor:
    """Row-wise log-sum-exp, [A, N] -> [A]; an empty row gives -inf and the gradient zero."""
    has_negative = (masked_logits > float("-inf")).any(dim=1)
    # logsumexp of an all -inf row has the gradient nan; such rows are replaced before and after.
    safe = masked_logits.masked_fill(~has_negative[:, None], 0.0)
    if masked_logits.shape[1] == 0:
        return masked_logits.sum(dim=1).fill_(float("-inf"))
    return safe.logsumexp(dim=1).masked_fill(~has_negative, float("-inf"))


def masked_logsumexp(
    anchors: Tensor,
    negatives: Tensor,
    anchor_labels: Tensor,
    negative_labels: Tensor,
    *,
    temperature: float = 0.1,
    normalize: bool = True,
) -> Tensor:
    """``log sum_j [y_j != y_i] exp(cos(a_i, n_j) / tau)``, the denominator's negatives (Eq. 5)."""
    _, masked = _logits(
        anchors, negatives, anchor_labels, negative_labels, temperature, normalize
    )  # [A, N]
    return _logsumexp(masked)


def masked_contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    anchor_labels: Tensor,
    negative_labels: Tensor,
    *,
    active: Tensor | None = None,
    temperature: float = 0.1,
    normalize: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """``-log r(a, p) / (r(a, p) + sum_n [y_n != y] r(a, n))`` for each anchor (Eq. 1, 5), ``[A]``.

    ``eps`` > 0 follows the authors' code: it is added to the denominator, in units of the row's
    maximum over the positive and the first ``LEADING_CHUNK`` negatives (whatever their class), and
    again inside the logarithm. The maximum counts as a constant; its derivative is of order eps.
    """
    unit_anchors = _unit(anchors, normalize)  # [A, C]
    positive = (unit_anchors * _unit(positives.detach(), normalize)).sum(-1) / temperature  # [A]
    logits, masked = _logits(
        anchors, negatives, anchor_labels, negative_labels, temperature, normalize
    )  # [A, N]
    if eps == 0:
        # -log(r_p / (r_p + S)) = log(1 + S / r_p): no cancellation when r_p dominates. (Not
        # softplus, which drops its logarithm above 20.)
        margin = _logsumexp(masked) - positive
        loss = torch.logaddexp(margin, torch.zeros_like(margin))
    else:
        leading = logits[:, :LEADING_CHUNK].detach()
        row_max = torch.cat([positive.detach()[:, None], leading], dim=1).amax(dim=1)  # [A]
        positive_exp = (positive - row_max).exp()
        denominator = positive_exp + (masked - row_max[:, None]).exp().sum(dim=1) + eps
        loss = -(positive_exp / denominator + eps).log()
    return loss if active is None else torch.where(active, loss, loss.new_zeros(()))


def direction_masks(
    confidences1: Tensor, confidences2: Tensor, confidence_threshold: float
) -> Tensor:
    """The two directional masks ``M`` (Eq. 7), ``[2, A]`` bool: row 0 for view 1 -> view 2."""
    towards2 = (confidences1 < confidences2) & (confidences2 > confidence_threshold)
    towards1 = (confidences2 < confidences1) & (confidences1 > confidence_threshold)
    return torch.stack([towards2, towards1])


def reduce_directions(
    loss: Tensor,  # [2, A]
    active: Tensor,  # [2, A] bool
    weights: Tensor | None,  # [A]
    reduction: str,
) -> Tensor:
    """Both directions' losses to one value, as ``reduction`` of the loss says."""
    if weights is not None:
        loss = loss * weights
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / max(loss.shape[1], 1)
    if reduction == "active_mean":
        # An empty direction adds 0, as the authors' sum / (count + 1e-12) does.
        return (loss.sum(dim=1) / active.sum(dim=1).clamp(min=1)).sum()
    raise ValueError(
        f"reduction must be 'active_mean', 'mean', 'sum' or 'none', but got {reduction!r}"
    )


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
    temperature: float = 0.1,
    confidence_threshold: float = 0.75,
    weights: Tensor | None = None,
    reduction: str = "active_mean",
    normalize: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """The directional contrastive loss of both directions (Eq. 1-8)."""
    active = direction_masks(confidences1, confidences2, confidence_threshold)  # [2, A]
    options = {"temperature": temperature, "normalize": normalize, "eps": eps}
    loss = torch.stack(
        [
            masked_contrastive_loss(
                features1,
                features2,
                negatives,
                pseudo_labels1,
                negative_labels,
                active=active[0],
                **options,
            ),
            masked_contrastive_loss(
                features2,
                features1,
                negatives,
                pseudo_labels2,
                negative_labels,
                active=active[1],
                **options,
            ),
        ]
    )  # [2, A]
    return reduce_directions(loss, active, weights, reduction)
