"""The running mean of a network: the teacher of Mean Teacher and its successors."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cac_ext.train.networks import SegmentationNetwork


def mean_of(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy to be kept as the running mean: in evaluation mode, without gradients."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def update_mean(mean: nn.Module, network: nn.Module, iteration: int, decay: float) -> None:
    """Move the mean towards the network's weights after a step, in place.

    The decay is ``min(1 - 1 / (iteration + 1), decay)``: the first steps count fully, so the random
    initial weights are forgotten. Batch statistics are averaged as well; integer buffers, e.g.
    counts of batches, are copied.

    Args:
        mean: of `mean_of`.
        network: the trained one.
        iteration: 0 after the first step.
        decay: in [0, 1).
    """
    share = 1 - min(1 - 1 / (iteration + 1), decay)
    pairs = zip(mean.state_dict().values(), network.state_dict().values(), strict=True)
    for averaged, value in pairs:
        if averaged.is_floating_point():
            averaged.lerp_(value, share)
        else:
            averaged.copy_(value)
