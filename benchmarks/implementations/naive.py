"""The equations as written: both A x N matrices held whole, the gradient by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import TEMPERATURE, Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.operations import Workload


class Naive(Implementation):
    name = "naive"
    description = "plain PyTorch, the whole A x N matrix of each direction in memory"

    def loss(self, inputs: Inputs) -> Tensor:
        unit1 = F.normalize(inputs.features1, dim=1)  # [A, C]
        unit2 = F.normalize(inputs.features2, dim=1)  # [A, C]
        negatives = F.normalize(inputs.negatives, dim=1)  # [N, C]
        active = inputs.active()
        views = [(unit1, unit2, inputs.pseudo_labels1), (unit2, unit1, inputs.pseudo_labels2)]
        total = unit1.new_zeros((), dtype=torch.float32)
        for (anchors, positives, labels), mask in zip(views, active, strict=True):
            positive = (anchors * positives.detach()).sum(1).float() / TEMPERATURE  # [A]
            logits = (anchors @ negatives.T).float() / TEMPERATURE  # [A, N]
            same_class = labels[:, None] == inputs.negative_labels[None, :]
            negative = logits.masked_fill(same_class, float("-inf"))
            loss = torch.cat([positive[:, None], negative], dim=1).logsumexp(1) - positive
            total = total + (loss * mask).sum() / mask.sum().clamp(min=1)
        return total

    def executed_operations(self, workload: Workload, phase: str) -> int:
        return workload.nominal_operations(phase)
