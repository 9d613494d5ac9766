"""The ways the loss computes: types, instruction sets and precisions of float32 products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cac_ext import _C

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Multiplication:
    """The type of the products."""

    name: str
    unit: float  # half a unit in the last place
    rounds_factors: bool  # so that errors average out over the channels
    exponential: float = 0.0  # error of an exponential beside that of the sums


FLOAT64 = Multiplication("float64", 2.0**-53, False)
FLOAT32 = Multiplication("float32", 2.0**-24, False)
THREE_TF32 = Multiplication("three TF32", 2.0**-22, False)
TWO_BFLOAT16 = Multiplication("two bfloat16", 2.0**-17, True, 2.0**-20)
TF32 = Multiplication("TF32 or float16", 2.0**-11, True)
BFLOAT16 = Multiplication("bfloat16", 2.0**-8, True, 2.0**-13)


@dataclass(frozen=True)
class Arithmetic:
    """One way to compute the loss of a type of features on this processor."""

    dtype: torch.dtype
    capability: str
    precision: str = "highest"

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}-{self.precision}-{self.capability}"


#: All ways; precisions other than "highest" only if they change the float32 products.
ARITHMETICS = [
    *(Arithmetic(dtype, capability) for capability in _C.cpu_capabilities() for dtype in DTYPES),
    *(
        Arithmetic(torch.float32, capability, precision)
        for capability in _C.cpu_capabilities()
        if capability in ("avx512_bf16", "amx")
        for precision in ("high", "medium")
    ),
]


@contextmanager
def use_arithmetic(arithmetic: Arithmetic) -> Iterator[None]:
    capability, precision = _C.cpu_capability(), torch.get_float32_matmul_precision()
    _C.limit_cpu_capability(arithmetic.capability)
    torch.set_float32_matmul_precision(arithmetic.precision)
    try:
        yield
    finally:
        _C.limit_cpu_capability(capability)
        torch.set_float32_matmul_precision(precision)


def multiplication_of(features: Tensor) -> Multiplication:
    """The type of the products of such features, here and now."""
    dtype, precision = features.dtype, torch.get_float32_matmul_precision()
    if dtype == torch.float64:
        return FLOAT64
    if features.device.type == "cuda":
        if dtype == torch.float32:
            return {"highest": THREE_TF32, "high": TF32, "medium": BFLOAT16}[precision]
        return BFLOAT16 if dtype == torch.bfloat16 else TF32
    has_bfloat16 = _C.cpu_capability() in ("avx512_bf16", "amx")
    may_be_bfloat16 = dtype == torch.bfloat16 or (dtype, precision) == (torch.float32, "medium")
    if has_bfloat16 and may_be_bfloat16:
        return BFLOAT16
    is_split = _C.cpu_capability() == "amx" and precision != "highest"
    return TWO_BFLOAT16 if is_split else FLOAT32
