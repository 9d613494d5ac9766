"""The fused loss of this package, called as a user calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import cac_ext
from benchmarks.cases import CONFIDENCE_THRESHOLD, TEMPERATURE, Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.operations import Multiplication, Workload
from cac_ext import _C
from cac_ext.ops import DTYPE_NUMBERS


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

    def multiplication(self, device: torch.device, dtype: torch.dtype) -> Multiplication | None:
        if device.type != "cpu":
            return None
        instruction_set, factor, products = _C.cpu_multiplication(DTYPE_NUMBERS[dtype])
        (name,) = [str(one) for one, number in DTYPE_NUMBERS.items() if number == factor]
        return Multiplication(name.removeprefix("torch."), instruction_set, products)


class OursUpTo(Ours):
    """As on a processor without the more capable sets; rivals keep every instruction set."""

    devices = ("cpu",)

    def __init__(self, capability: str) -> None:
        self.capability = capability  # one of cac_ext.build_info()["cpu_capabilities"]
        self.name = capability

    def loss(self, inputs: Inputs) -> Tensor:
        with self._limited():
            return super().loss(inputs)

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.capability not in _C.cpu_capabilities():
            return f"this processor has no {self.capability}"
        return super().unsupported(device, dtype)

    def multiplication(self, device: torch.device, dtype: torch.dtype) -> Multiplication | None:
        with self._limited():
            return super().multiplication(device, dtype)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        before = _C.cpu_capability()
        _C.limit_cpu_capability(self.capability)
        try:
            yield
        finally:
            _C.limit_cpu_capability(before)


class OursAvx512(OursUpTo):
    name = "ours-avx512"
    description = "ours with AVX-512 alone, as on a processor without AMX"
    cpu_dtypes = ("float32",)

    def __init__(self) -> None:
        self.capability = "avx512"


class OursAvx2(OursUpTo):
    name = "ours-avx2"
    description = "ours with AVX2 alone"
    cpu_dtypes = ("float32",)

    def __init__(self) -> None:
        self.capability = "avx2"
