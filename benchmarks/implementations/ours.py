"""The fused loss of this package, called as a user calls it."""

from __future__ import annotations

from torch import Tensor

import cac_ext
from benchmarks.cases import CONFIDENCE_THRESHOLD, TEMPERATURE, Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.operations import Workload


class Ours(Implementation):
    name = "ours"
    description = "cac_ext.directional_contrastive_loss, sorting of the negatives included"
    cpu_dtypes = ("float32", "float32-high", "bfloat16")

    def loss(self, inputs: Inputs) -> Tensor:
        return cac_ext.directional_contrastive_loss(
            inputs.features1,
            inputs.features2,
            inputs.confidences1,
            inputs.confidences2,
            inputs.pseudo_labels1,
            inputs.pseudo_labels2,
            inputs.negatives,
            inputs.negative_labels,
            temperature=TEMPERATURE,
            confidence_threshold=CONFIDENCE_THRESHOLD,
        )

    def executed_operations(self, workload: Workload, phase: str) -> int:
        return workload.one_pass_operations(phase)
