"""The authors' algorithm: negatives in chunks of 8,000, each recomputed in the backward pass.

Written from the description of their released code. The first chunk, with the positive, gives the
maximum of every row (masked negatives included). All chunks add up their masked exponentials under
gradient checkpointing. 1e-8 is added to the denominator and again inside the logarithm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.cases import TEMPERATURE, Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.operations import Workload

CHUNK = 8_000
EPS = 1e-8


def _first_chunk(
    positive: Tensor,  # [A, 1]
    anchors: Tensor,  # [A, C]
    negatives: Tensor,  # [chunk, C]
    labels: Tensor,  # [A]
    negative_labels: Tensor,  # [chunk]
) -> tuple[Tensor, Tensor]:
    mask = (labels[:, None] != negative_labels[None, :]).float()  # [A, chunk]
    logits = (anchors @ negatives.T).float() / TEMPERATURE  # [A, chunk]
    row_max = torch.cat([positive, logits], dim=1).amax(dim=1, keepdim=True).detach()  # [A, 1]
    return ((logits - row_max).exp() * mask).sum(-1), row_max


def _later_chunk(
    row_max: Tensor,  # [A, 1]
    anchors: Tensor,
    negatives: Tensor,
    labels: Tensor,
    negative_labels: Tensor,
) -> Tensor:
    mask = (labels[:, None] != negative_labels[None, :]).float()
    logits = (anchors @ negatives.T).float() / TEMPERATURE
    return ((logits - row_max).exp() * mask).sum(-1)


def _direction(
    anchors: Tensor,  # [A, C] unit
    positives: Tensor,  # [A, C] unit
    negatives: Tensor,  # [N, C] unit
    labels: Tensor,  # [A]
    negative_labels: Tensor,  # [N]
    active: Tensor,  # [A] bool
) -> Tensor:
    positive = (anchors * positives.detach()).sum(1, keepdim=True).float() / TEMPERATURE  # [A, 1]
    chunks = list(zip(negatives.split(CHUNK), negative_labels.split(CHUNK), strict=True))
    features, classes = chunks[0]
    total, row_max = checkpoint(
        _first_chunk, positive, anchors, features, labels, classes, use_reentrant=False
    )
    for features, classes in chunks[1:]:
        total = total + checkpoint(
            _later_chunk, row_max, anchors, features, labels, classes, use_reentrant=False
        )
    positive_exp = (positive - row_max).exp().squeeze(1)  # [A]
    loss = -torch.log(positive_exp / (positive_exp + total + EPS) + EPS)  # [A]
    return (loss * active).sum() / (active.sum() + 1e-12)


def official_loss(inputs: Inputs) -> Tensor:
    unit1 = F.normalize(inputs.features1, dim=1)
    unit2 = F.normalize(inputs.features2, dim=1)
    negatives = F.normalize(inputs.negatives, dim=1)
    active = inputs.active()
    labels = inputs.negative_labels
    return _direction(
        unit1, unit2, negatives, inputs.pseudo_labels1, labels, active[0]
    ) + _direction(unit2, unit1, negatives, inputs.pseudo_labels2, labels, active[1])


class Official(Implementation):
    name = "official"
    description = "the authors' algorithm: chunks of 8,000 negatives under gradient checkpointing"
    eps = EPS
    cpu_dtypes = ("float32", "bfloat16")

    def loss(self, inputs: Inputs) -> Tensor:
        return official_loss(inputs)

    def executed_operations(self, workload: Workload, phase: str) -> int:
        # Forward; backward computes it again and adds the product of the gradient.
        passes = {"forward": 1, "backward": 2, "both": 3}[phase]
        return 2 * workload.channels * workload.all_pairs * passes


class OfficialCompiled(Official):
    name = "official-compiled"
    description = "the authors' algorithm under torch.compile"
    compiles = True

    def __init__(self) -> None:
        self._compiled = torch.compile(official_loss, dynamic=False)

    def loss(self, inputs: Inputs) -> Tensor:
        return self._compiled(inputs)
