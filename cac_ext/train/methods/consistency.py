"""The consistency loss of the two views: the only place where training meets the fused loss.

`MethodConfig` selects the row of the paper's Table 3. The default is the directional contrastive
loss with negative sampling and positive filtering (Eq. 1-8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

import cac_ext
from cac_ext.train.config import MethodConfig
from cac_ext.train.methods.chunks import losses_over_chunks
from cac_ext.train.runtime.distributed import ALONE, Processes

#: Features ``[N, C]`` and labels ``[N]``; no labels beside prepared negatives, which carry them.
Negatives: TypeAlias = "tuple[Tensor | cac_ext.PreparedNegatives, Tensor | None]"


class Overlap(NamedTuple):
    """The A pixels that both views show, as the network sees them in one view."""

    projections: Tensor  # [A, C] unit length
    confidences: Tensor  # [A] largest class probability
    pseudo_labels: Tensor  # [A] most probable class


class Anchors(NamedTuple):
    """Which pixels of the overlap are anchors in each direction (Eq. 2 and 7)."""

    first_to_second: Tensor  # [A] bool, pixels of view 1 that are pulled towards view 2
    second_to_first: Tensor  # [A] bool

    def counts(self) -> Tensor:
        """Active anchors of each direction, ``[2]`` int64."""
        return torch.stack([mask.sum() for mask in self])

    def share(self, processes: Processes) -> Tensor:
        """Share of the overlap that is an anchor in either direction; a scalar, 0 if A is 0.

        Averaged over the processes, whose overlaps differ in size, it is the share of them all.
        """
        either = self.first_to_second | self.second_to_first  # [A]
        return either.sum() / processes.mean_count(torch.full_like(either, True).sum())


def consistency_loss(
    config: MethodConfig,
    view1: Overlap,
    view2: Overlap,
    overlap_weights: Tensor,  # [A] 1 / (B N_b) of each pixel's image
    negatives: Tensor,  # [N, C] unit length
    negative_labels: Tensor,  # [N]
    processes: Processes = ALONE,
    directional_loss: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Anchors]:
    """Both directions' loss, a scalar; the gradient reaches each direction's anchors only.

    Its mean over ``processes`` is the loss of all their images together.

    ``directional_loss`` stands in for `cac_ext.directional_contrastive_loss`, called with
    ``return_direction=True``.
    """
    view1, view2 = _with_counted_labels(config, view1), _with_counted_labels(config, view2)
    negative_labels = _counted_negative_labels(config, negative_labels)
    threshold = _threshold(config)
    weights = _weights(config, overlap_weights)

    if config.loss == "contrastive" and config.directional:
        reduction = "sum"
        if weights is None:
            # One process has the active count of all: the loss can take the mean by itself.
            reduction = "active_mean" if processes.size == 1 else "none"
        losses, direction = (directional_loss or cac_ext.directional_contrastive_loss)(
            view1.projections,
            view2.projections,
            view1.confidences,
            view2.confidences,
            view1.pseudo_labels,
            view2.pseudo_labels,
            negatives,
            negative_labels,
            temperature=config.temperature,
            confidence_threshold=threshold,
            weights=weights,
            reduction=reduction,
            normalize=False,
            return_direction=True,
        )  # a scalar, or [2, A] for "none"; [A]
        anchors = Anchors(direction == 1, direction == 2)
        if reduction == "none":
            losses = (losses.sum(dim=1) * _active_shares(anchors, processes)).sum()
        return losses, anchors

    anchors = _anchors(config, view1, view2)
    prepared: Negatives = negatives, negative_labels
    if config.loss == "contrastive":  # sorted once for both directions
        prepared = cac_ext.prepare_negatives(negatives, negative_labels, normalize=False), None
    first, second = _pull_both(config, view1, view2, anchors, prepared)
    return _total(first, second, anchors, weights, processes), anchors


def consistency_loss_over_chunks(
    config: MethodConfig,
    view1: Overlap,
    view2: Overlap,
    overlap_weights: Tensor,  # [A]
    chunks: Iterable[tuple[Tensor, Tensor]],  # [N_k, C] unit length, [N_k]
    processes: Processes = ALONE,
) -> tuple[Tensor, Anchors]:
    """`consistency_loss` with negatives that come in chunks, one or more; it holds one at a time.

    Equal to it up to rounding. Only the contrastive loss takes any chunk.
    """
    if config.loss != "contrastive":
        none = view1.projections.detach()[:0], view1.pseudo_labels[:0]
        return consistency_loss(config, view1, view2, overlap_weights, *none, processes)
    view1, view2 = _with_counted_labels(config, view1), _with_counted_labels(config, view2)
    anchors = _anchors(config, view1, view2)

    def losses_of(
        features1: Tensor, features2: Tensor, negatives: Tensor, labels: Tensor
    ) -> Tensor:
        labels = _counted_negative_labels(config, labels)
        first = view1._replace(projections=features1)
        second = view2._replace(projections=features2)
        prepared = cac_ext.prepare_negatives(negatives, labels, normalize=False), None
        return torch.stack(_pull_both(config, first, second, anchors, prepared))

    first, second = losses_over_chunks(losses_of, view1.projections, view2.projections, chunks)
    weights = _weights(config, overlap_weights)
    return _total(first, second, anchors, weights, processes), anchors


def _with_counted_labels(config: MethodConfig, view: Overlap) -> Overlap:
    """The view; without ``negative_sampling`` with labels that differ from every negative's."""
    if config.negative_sampling:
        return view
    return view._replace(pseudo_labels=torch.ones_like(view.pseudo_labels))


def _counted_negative_labels(config: MethodConfig, labels: Tensor) -> Tensor:
    """Labels ``[N]`` of negatives, for anchors of `_with_counted_labels`."""
    return labels if config.negative_sampling else torch.zeros_like(labels)


def _threshold(config: MethodConfig) -> float:
    """The confidence that a positive must exceed (Eq. 7)."""
    return config.confidence_threshold if config.positive_filtering else 0.0


def _weights(config: MethodConfig, overlap_weights: Tensor) -> Tensor | None:
    """The weight of each pixel ``[A]``; None for 1 / active anchors of its direction."""
    return overlap_weights if config.normalizer == "overlap" else None


def _anchors(config: MethodConfig, view1: Overlap, view2: Overlap) -> Anchors:
    """Eq. 7 for the losses whose operator does not evaluate it; Eq. 2 only if ``directional``."""
    confidences1, confidences2 = view1.confidences, view2.confidences
    threshold = _threshold(config)
    first_to_second, second_to_first = confidences2 > threshold, confidences1 > threshold
    if config.directional:
        first_to_second = first_to_second & (confidences1 < confidences2)
        second_to_first = second_to_first & (confidences2 < confidences1)
    return Anchors(first_to_second, second_to_first)


def _pull_both(
    config: MethodConfig, view1: Overlap, view2: Overlap, anchors: Anchors, negatives: Negatives
) -> tuple[Tensor, Tensor]:
    """The losses of both directions, ``[A]`` each."""
    return (
        _pull(config, view1, view2, anchors.first_to_second, negatives),
        _pull(config, view2, view1, anchors.second_to_first, negatives),
    )


def _pull(
    config: MethodConfig,
    anchor: Overlap,
    positive: Overlap,
    active: Tensor,  # [A] bool
    negatives: Negatives,
) -> Tensor:
    """The loss of one direction, ``[A]``, 0 for inactive anchors: contrastive or squared L2."""
    if config.loss == "l2":
        distance = (anchor.projections - positive.projections.detach()).square().sum(dim=1)
        return torch.where(active, distance, 0.0)
    features, labels = negatives
    return cac_ext.masked_contrastive_loss(
        anchor.projections,
        positive.projections.detach(),
        features,
        anchor.pseudo_labels,
        labels,
        active=active,
        temperature=config.temperature,
        normalize=False,
    )


def _total(
    first: Tensor,  # [A] losses of direction 1 -> 2
    second: Tensor,  # [A] of 2 -> 1
    anchors: Anchors,
    weights: Tensor | None,  # [A]; None: 1 / active anchors of the direction
    processes: Processes,
) -> Tensor:
    """The sum of the weighted losses, a scalar."""
    if weights is None:
        shares1, shares2 = _active_shares(anchors, processes)
    else:
        shares1 = shares2 = weights
    return (first * shares1).sum() + (second * shares2).sum()


def _active_shares(anchors: Anchors, processes: Processes) -> Tensor:
    """What one anchor counts in each direction: 1 / active anchors, as a mean of processes, [2]."""
    counts = processes.mean(anchors.counts().double())
    return counts.clamp(min=1 / processes.size).reciprocal().float()
