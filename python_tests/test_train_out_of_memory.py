"""An error that says that memory is used up is known as such, whoever raised it."""

from __future__ import annotations

import pytest
import torch

from cac_ext.train.runtime.memory import is_out_of_memory

REFUSED = {
    "torch on Linux": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on Windows": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you "
        "tried to allocate 1125899906842624 bytes."
    ),
    "the caching allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "the CUDA driver": RuntimeError("CUDA error: out of memory"),
    "a library in capitals": RuntimeError("CUDNN_STATUS_NOT_INITIALIZED: Out Of Memory"),
    "C++ through torch": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
}
OTHERS = {
    "another fault of torch": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    "the CPU's allocator was asked for less than nothing": RuntimeError(
        "Trying to create tensor with negative dimension -1: [-1]"
    ),
    "a value that speaks of memory": ValueError("data.memory: out of memory is no number"),
    "a full disk": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("who", REFUSED)
def test_a_refusal_is_a_lack_of_memory(who: str) -> None:
    assert is_out_of_memory(REFUSED[who])


@pytest.mark.parametrize("what", OTHERS)
def test_other_errors_are_none(what: str) -> None:
    assert not is_out_of_memory(OTHERS[what])


def test_what_torch_raises_here_is_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
