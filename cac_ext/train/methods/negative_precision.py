"""The share of selected negatives that are true negatives (paper section 3.4 and Fig. 6).

The paper's precision is "the number of true negative samples" divided by "the number of all
selected negative samples". A pair of an active anchor and a negative is *selected* if their pseudo
labels differ (Eq. 5), and a *true* negative if their true classes differ as well. Pixels with an
unknown true class (-1) are left out on both sides.

Whether a pair counts depends on four classes only. So pixels are counted by pseudo label and true
class, ``[K, K]``, and sums over all pairs become sums over the classes of two such tables. The
matrix of anchors times negatives is never held, and the counts of several processes and of the
steps in the memory bank add up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_classes(
    pseudo_labels: Tensor,  # [M]
    true_labels: Tensor,  # [M], -1 where unknown
    num_classes: int,
    counted: Tensor | None = None,  # [M] bool
) -> Tensor:
    """Pixels of each pseudo label and true class, ``[K, K]`` int64. It waits for no device."""
    known = true_labels >= 0  # [M]
    if counted is not None:
        known = known & counted
    cells = torch.where(known, pseudo_labels * num_classes + true_labels, num_classes**2)
    counts = pseudo_labels.new_zeros(num_classes**2 + 1)  # the last cell takes the unknown
    counts.scatter_add_(0, cells, torch.ones_like(cells))
    return counts[:-1].view(num_classes, num_classes)


def negative_precision(
    anchors: Tensor,  # [K, K] int64, active anchors by pseudo label and true class
    negatives: Tensor,  # [K, K] int64, negatives likewise
) -> tuple[Tensor, Tensor]:
    """Precision of the selected pairs, and of all pairs; scalars in [0, 1], nan of no pairs.

    That of all pairs is what negatives drawn at random have on average: Fig. 6's other curve.
    """
    pairs = anchors.sum() * negatives.sum()
    same_label = (anchors.sum(dim=1) * negatives.sum(dim=1)).sum()
    same_truth = (anchors.sum(dim=0) * negatives.sum(dim=0)).sum()
    same_both = (anchors * negatives).sum()
    selected = pairs - same_label
    true_and_selected = selected - same_truth + same_both
    return true_and_selected.double() / selected, (pairs - same_truth).double() / pairs
