"""From weak to strong augmentation: pseudo labels, CutMix, and the loss that they give.

FixMatch and UniMatch predict a weakly augmented crop and learn the confident part of the prediction
on strongly augmented versions of the same crop. Padding is never learned and never counted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runtime.distributed import Processes

_NOT_LEARNED = -100  # no class


class PseudoLabels(NamedTuple):
    """Predictions of crops, as labels: ``[U, S, S]`` each, ``[V, U, S, S]`` behind CutMix."""

    labels: Tensor  # int64, the most probable class
    confidences: Tensor  # its probability
    valid: Tensor  # bool, False on padding

    def are_finite(self) -> Tensor:
        """Whether all probabilities outside padding are finite, a scalar."""
        return (self.confidences.isfinite() | ~self.valid).all()

    def confident(self, threshold: float) -> Tensor:
        """Which pixels are learned: confidence at least ``threshold``, outside padding."""
        return (self.confidences >= threshold) & self.valid

    def version(self, index: int) -> PseudoLabels:
        """Those of one strong version, ``[U, S, S]`` each."""
        return PseudoLabels(*(part[index] for part in self))

    def confident_share(self, threshold: float, processes: Processes) -> Tensor:
        """Share of the pixels outside padding that are learned, a scalar; 0 if there are none.

        Averaged over the processes, which pad differently, it is the share of them all.
        """
        return self.confident(threshold).sum() / processes.mean_count(self.valid.sum())


@torch.no_grad()
def pseudo_labels(logits: Tensor, valid: Tensor) -> PseudoLabels:
    """Of logits ``[U, K, S, S]``, without gradient; ``valid`` is False on padding."""
    confidences, labels = logits.softmax(dim=1).max(dim=1)
    return PseudoLabels(labels, confidences, valid)


@torch.no_grad()
def labels_in_evaluation(network: SegmentationNetwork, crops: WholeCropBatch) -> PseudoLabels:
    """Pseudo labels of the weak crops by the network in evaluation mode: no state changes.

    Call it with the bare network, not through DDP, before the forward pass that is trained.
    """
    network.eval()
    logits = network(crops.weak)  # [U, K, S, S]
    network.train()
    return pseudo_labels(logits, crops.valid)


def mix_images(crops: WholeCropBatch, partner: WholeCropBatch) -> Tensor:
    """The strong versions with the partner's inside the boxes, ``[V U, 3, S, S]``."""
    inside = crops.cutmix[:, :, None]  # [V, U, 1, S, S]
    return torch.where(inside, partner.strong, crops.strong).flatten(0, 1)


def mix_labels(crops: WholeCropBatch, own: PseudoLabels, partner: PseudoLabels) -> PseudoLabels:
    """Labels, confidences and padding of `mix_images`: the partner's inside the boxes."""
    pairs = zip(own, partner, strict=True)
    return PseudoLabels(*(torch.where(crops.cutmix, theirs, ours) for ours, theirs in pairs))


def confident_cross_entropy(
    logits: Tensor, targets: PseudoLabels, threshold: float, processes: Processes
) -> Tensor:
    """Cross entropy of the confident pixels, divided by the number of pixels outside padding.

    So an unsure prediction lowers the loss instead of raising the weight of the other pixels.
    Averaged over ``processes`` it is the loss of all their pixels together.

    Args:
        logits: ``[U, K, S, S]``.
        targets: ``[U, S, S]``.
        threshold: see `PseudoLabels.confident`.
        processes: see `MethodContext.normalizing`.
    """
    labels = torch.where(targets.confident(threshold), targets.labels, _NOT_LEARNED)
    total = F.cross_entropy(logits, labels, ignore_index=_NOT_LEARNED, reduction="sum")
    return total / processes.mean_count(targets.valid.sum())
