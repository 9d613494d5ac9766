"""Mixed precision: the type that autocast computes in."""

from __future__ import annotations

import torch

from cac_ext.train.config import RunConfig

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The context for the forward pass of a step; ``run.precision=fp32`` leaves it off."""
    dtype = _AUTOCAST[config.precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
