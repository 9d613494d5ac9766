"""How much memory a device has, and whether an error says that it is used up."""

from __future__ import annotations

import os

import torch

#: What torch says where the operating system gives a CPU no memory.
_CPU_FAILURES = ("can't allocate memory", "not enough memory")


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device has not enough memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_FAILURES)
