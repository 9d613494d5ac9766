"""Who is measured: implementations, each in the input types asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.implementations import IMPLEMENTATIONS, Implementation
from benchmarks.operations import Workload


@dataclass
class Contender:
    """One implementation in one input type."""

    implementation: Implementation
    dtype: torch.dtype
    seconds_per_operation: float | None = None  # of the last measurement, to predict the next
    measured: bool = False  # whether that was of real size
    broken: str = ""  # why it is not measured at all

    def predict_from(self, seconds: float, operations: int) -> None:
        """Remember a measurement of real size."""
        self.seconds_per_operation = seconds / operations
        self.measured = True

    def predicted(self, workload: Workload) -> float:
        """Seconds that loss and gradient will take, by the last measurement; 0 without one."""
        operations = self.implementation.executed_operations(workload, "both")
        return (self.seconds_per_operation or 0.0) * operations

    @property
    def name(self) -> str:
        return self.implementation.name

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def label(self) -> str:
        return f"{self.name} {self.dtype_name}"


def make_contenders(names: list[str], device: torch.device) -> list[Contender]:
    """``NAME`` or ``NAME:TYPE`` to contenders; a bare name takes the types usual on the device."""
    contenders: dict[str, Contender] = {}
    for name in names:
        name, _, dtype = name.partition(":")
        if name not in IMPLEMENTATIONS:
            raise ValueError(
                f"no implementation is called {name!r}; there are: {', '.join(IMPLEMENTATIONS)}"
            )
        implementation = IMPLEMENTATIONS[name]()
        usual = implementation.cpu_dtypes if device.type == "cpu" else ("float32", "bfloat16")
        for dtype_name in [dtype] if dtype else usual:
            if dtype_name not in ("float32", "bfloat16", "float16"):
                raise ValueError(
                    f"the input type must be float32, bfloat16 or float16, but got {dtype_name!r}"
                )
            contender = Contender(implementation, getattr(torch, dtype_name))
            contenders[contender.label()] = contender
    return list(contenders.values())
