"""Mixed precision: the type that autocast computes in."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

#: ``run.precision``.
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context for a forward pass; ``fp32`` leaves it off."""
    dtype = _AUTOCAST[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
