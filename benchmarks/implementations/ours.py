"""The fused loss of this package, called as a user calls it."""

from __future__ import annotations

import torch
from torch import Tensor

import cac_ext
from benchmarks.cases import CONFIDENCE_THRESHOLD, TEMPERATURE, Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.operations import Workload
from cac_ext import _C


class Ours(Implementation):
    name = "ours"
    description = "cac_ext.directional_contrastive_loss, sorting of the negatives included"
    cpu_dtypes: tuple[str, ...] = ("float32", "float32-high", "bfloat16")

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


class OursAvx512(Ours):
    """As on a processor without AMX; rivals keep every instruction set of this one."""

    capability = "avx512"
    name = "ours-avx512"
    description = "ours with AVX-512 alone, as on a processor without AMX"
    devices = ("cpu",)
    cpu_dtypes = ("float32",)

    def loss(self, inputs: Inputs) -> Tensor:
        before = _C.cpu_capability()
        _C.limit_cpu_capability(self.capability)
        try:
            return super().loss(inputs)
        finally:
            _C.limit_cpu_capability(before)

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.capability not in _C.cpu_capabilities():
            return f"this processor has no {self.capability}"
        return super().unsupported(device, dtype)


class OursAvx2(OursAvx512):
    capability = "avx2"
    name = "ours-avx2"
    description = "ours with AVX2 alone"
