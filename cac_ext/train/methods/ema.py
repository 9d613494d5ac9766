"""The running mean of a network: the teacher of Mean Teacher, and what is evaluated.

`EvaluatedMean` adds the latter to any method, by ``run.ema_decay``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer

from cac_ext.train.methods.contract import Method, Phase, Step, StreamRequest
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


class EvaluatedMean(Method):
    """A method of which the running mean of the evaluated network is evaluated in its place.

    Training is that of the method, bit for bit. If the method already evaluates a running mean,
    such as a mean teacher, this is the mean of that one.

    Args:
        method: what trains.
        decay: in [0, 1); see `update_mean`.
    """

    def __init__(self, method: Method, decay: float) -> None:
        super().__init__(method.context)
        self.method = method
        self.decay = decay
        self.mean = mean_of(method.evaluated)
        self.trained = method.trained
        self.kept = {**method.kept, "evaluated_mean": self.mean}

    @property
    def evaluated(self) -> SegmentationNetwork:
        return self.mean

    def after_step(self, iteration: int) -> None:
        self.method.after_step(iteration)
        update_mean(self.mean, self.method.evaluated, iteration, self.decay)

    # The rest is the method's.

    def streams(self) -> dict[str, StreamRequest]:
        return self.method.streams()

    def step(self, step: Step) -> Iterator[Phase]:
        return self.method.step(step)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.method.parameter_groups()

    def build_optimizers(self) -> dict[str, Optimizer]:
        return self.method.build_optimizers()

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict()

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.method.load_state_dict(state, device)

    def pictures(self) -> dict[str, Figure]:
        return self.method.pictures()
