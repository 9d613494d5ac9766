"""The consistency loss of the two views: the only place where training meets the fused loss.

`MethodConfig` selects the row of the paper's Table 3. The default is the directional contrastive
loss with negative sampling and positive filtering (Eq. 1-8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import cac_ext
from cac_ext.train.config import MethodConfig
from cac_ext.train.runtime.distributed import ALONE, Processes


@dataclass(frozen=True)
class Overlap:
    """The A pixels that both views see, as one view sees them."""

    projections: Tensor  # [A, C] unit length
    confidences: Tensor  # [A] largest class probability
    pseudo_labels: Tensor  # [A] class


def consistency_loss(
    config: MethodConfig,
    view1: Overlap,
    view2: Overlap,
    overlap_weights: Tensor,  # [A] 1 / (B N_b) of each pixel's image
    negatives: Tensor,  # [N, C] unit length
    negative_labels: Tensor,  # [N]
    processes: Processes = ALONE,
    directional_loss: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Both directions' loss, a scalar; gradient to each direction's anchors only.

    Its mean over ``processes`` is the loss of all their images together.

    ``directional_loss`` stands in for `cac_ext.directional_contrastive_loss`.

    Returns:
        The loss, and the anchors in direction 1 -> 2 and in 2 -> 1, ``[A]`` bool each.
    """
    weights = overlap_weights if config.normalizer == "overlap" else None
    threshold = config.confidence_threshold if config.positive_filtering else 0.0
    masks = active_masks(config, view1, view2)
    labels1, labels2 = view1.pseudo_labels, view2.pseudo_labels
    if not config.negative_sampling:  # every negative differs from every anchor
        labels1, labels2 = torch.ones_like(labels1), torch.ones_like(labels2)
        negative_labels = torch.zeros_like(negative_labels)

    if config.loss == "contrastive" and config.directional:
        reduction = "sum"
        if weights is None:
            # One process has the active count of all: the loss can take the mean by itself.
            reduction = "active_mean" if processes.size == 1 else "none"
        losses = (directional_loss or cac_ext.directional_contrastive_loss)(
            view1.projections,
            view2.projections,
            view1.confidences,
            view2.confidences,
            labels1,
            labels2,
            negatives,
            negative_labels,
            temperature=config.temperature,
            confidence_threshold=threshold,
            weights=weights,
            reduction=reduction,
            normalize=False,
        )  # [2, A] or a scalar
        if reduction != "none":
            return losses, masks
        return (losses.sum(dim=1) * _active_shares(masks, processes)).sum(), masks

    if weights is None:
        shares = _active_shares(masks, processes)
    total = view1.projections.new_zeros(())
    directions = ((view1, view2, labels1), (view2, view1, labels2))
    for index, (anchor, positive, labels) in enumerate(directions):
        active = masks[index]  # [A]
        if config.loss == "l2":
            distance = (anchor.projections - positive.projections.detach()).square().sum(dim=1)
            loss = torch.where(active, distance, 0.0)  # [A]
        else:
            loss = cac_ext.masked_contrastive_loss(
                anchor.projections,
                positive.projections.detach(),
                negatives,
                labels,
                negative_labels,
                active=active,
                temperature=config.temperature,
                normalize=False,
            )  # [A]
        share = shares[index] if weights is None else weights
        total = total + (loss * share).sum()
    return total, masks


def active_masks(config: MethodConfig, view1: Overlap, view2: Overlap) -> tuple[Tensor, Tensor]:
    """Which overlap pixels are anchors in direction 1 -> 2 and in 2 -> 1 (Eq. 2 and 7), ``[A]``."""
    threshold = config.confidence_threshold if config.positive_filtering else 0.0
    towards1, towards2 = view1.confidences > threshold, view2.confidences > threshold
    if config.directional:
        towards1 = towards1 & (view2.confidences < view1.confidences)
        towards2 = towards2 & (view1.confidences < view2.confidences)
    return towards2, towards1


def _active_shares(masks: tuple[Tensor, Tensor], processes: Processes) -> Tensor:
    """What one anchor counts in each direction: 1 / active anchors, as a mean of processes, [2]."""
    counts = processes.mean(torch.stack([mask.sum() for mask in masks]).double())
    return counts.clamp(min=1 / processes.size).reciprocal().float()
