"""The interface behind which every implementation of the loss is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from benchmarks.cases import Inputs
from benchmarks.operations import Multiplication, Workload
from cac_ext import _C
from cac_ext.ops import DTYPE_NUMBERS


class Implementation(ABC):
    """One way to compute the directional contrastive loss of both directions (``active_mean``)."""

    #: Name on the command line and in every table.
    name: str
    #: One line for ``--help`` and the report.
    description: str
    #: ``eps`` of its equations; the oracle gets the same.
    eps: float = 0.0
    #: Where it runs.
    devices: tuple[str, ...] = ("cpu", "cuda")
    #: Input types measured on a CPU by default; on a GPU they are float32 and bfloat16.
    cpu_dtypes: tuple[str, ...] = ("float32",)
    #: Whether the first call at a new size compiles and must never be timed.
    compiles: bool = False

    @abstractmethod
    def loss(self, inputs: Inputs) -> Tensor:
        """Scalar loss of both directions, differentiable in ``features1`` and ``features2``."""

    @abstractmethod
    def executed_operations(self, workload: Workload, phase: str) -> int:
        """Operations of the matrix products that it really runs in ``phase``."""

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run there, or None."""
        if device.type not in self.devices:
            return f"it runs on {' and '.join(self.devices)} alone"
        if device.type == "cpu" and dtype == torch.float16:
            return "float16 matrix products are not accelerated on this kind of processor"
        return None

    def multiplication(self, device: torch.device, dtype: torch.dtype) -> Multiplication | None:
        """How features are multiplied, under the present precision; None if that is not known.

        Torch's products are taken to use the most capable instructions of the type. Those of
        float32 under the precision "medium" may be products of bfloat16, or not.
        """
        sets = _C.cpu_peak_capabilities(DTYPE_NUMBERS[dtype])
        unsure = dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
        if device.type != "cpu" or not sets or unsure:
            return None
        return Multiplication(str(dtype).removeprefix("torch."), sets[-1])
