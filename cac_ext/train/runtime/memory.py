"""How much memory a device has, and whether an error says that it is used up."""

from __future__ import annotations

import os

import torch

#: What a RuntimeError says, in lower case, if an allocator was refused: torch's on Linux and on
#: Windows, the CUDA driver and its libraries, and C++.
_REFUSALS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the CPU or another device has not enough memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(refusal in text for refusal in _REFUSALS)
