"""Contenders: implementations, each in the requested input types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.errors import UsageError
from benchmarks.implementations import IMPLEMENTATIONS, Implementation
from benchmarks.operations import Workload

#: In a whole training step, the floor of all implementations: no consistency loss, but the backward
#: pass through both views.
NO_LOSS = "no loss"

#: Input types by name, with the precision of float32 products. "float32-high" allows TF32 or sums
#: of two bfloat16 numbers, to every implementation alike.
TYPES = {
    "float32": (torch.float32, "highest"),
    "float32-high": (torch.float32, "high"),
    "float32-medium": (torch.float32, "medium"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}

#: A measurement of at least this share of the operations predicts a call well.
PREDICTABLE = 1 / 20


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision(precision)`` inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Contender:
    """One implementation in one input type, a name of `TYPES`."""

    implementation: Implementation
    dtype_name: str
    seconds_per_operation: float | None = None  # of the last measurement; predicts the next
    measured_operations: int = 0  # of that measurement; 0 after a first rough timing
    first_seconds: float = 0.0  # of the first call at a size, compiler included
    broken: str = ""  # why it is not measured, or empty

    def predict_from(self, seconds: float, operations: int) -> None:
        """Remember a measurement. A first rough timing sets ``seconds_per_operation`` alone."""
        self.seconds_per_operation = seconds / max(operations, 1)
        self.measured_operations = operations

    def is_predictable(self, workload: Workload) -> bool:
        """Whether a call not much smaller was measured, so that `predicted` is reliable."""
        operations = self.implementation.executed_operations(workload, "both")
        return self.measured_operations >= PREDICTABLE * operations

    def predicted(self, workload: Workload) -> float:
        """Seconds of loss and gradient by the last measurement; 0 without one."""
        operations = self.implementation.executed_operations(workload, "both")
        return (self.seconds_per_operation or 0.0) * operations

    def failure(self) -> tuple[str, str] | None:
        """Status and reason if it is broken, else None."""
        if not self.broken:
            return None
        wrong = self.broken.startswith("wrong result")
        return ("failed" if wrong else "skipped"), self.broken

    @property
    def name(self) -> str:
        return self.implementation.name

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.dtype_name][0]

    @property
    def precision(self) -> str:
        return TYPES[self.dtype_name][1]

    def label(self) -> str:
        return f"{self.name} {self.dtype_name}"


def make_contenders(names: list[str], device: torch.device) -> list[Contender]:
    """``NAME`` or ``NAME:TYPE`` to contenders; a bare name takes the types usual on the device."""
    contenders: dict[str, Contender] = {}
    for name in names:
        name, _, dtype = name.partition(":")
        if name not in IMPLEMENTATIONS:
            raise UsageError(
                f"there is no implementation {name!r}; choose from: {', '.join(IMPLEMENTATIONS)}"
            )
        implementation = IMPLEMENTATIONS[name]()
        usual = implementation.cpu_dtypes if device.type == "cpu" else ("float32", "bfloat16")
        for dtype_name in [dtype] if dtype else usual:
            if dtype_name not in TYPES:
                raise UsageError(
                    f"the input type must be one of {', '.join(TYPES)}, but got {dtype_name!r}"
                )
            contender = Contender(implementation, dtype_name)
            contenders[contender.label()] = contender
    return list(contenders.values())
