"""Peak memory of one loss with its gradient, beyond its inputs.

On a GPU the caching allocator keeps the peak. On the CPU nothing does, so the call is made in a
process of its own (`benchmarks.memory_probe`) and the growth of its peak resident memory is read.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.cases import Case, Inputs
from benchmarks.children import run_child
from benchmarks.implementations import Implementation
from benchmarks.machine import available_memory

#: The largest limit that fits into the system's own number.
_UNLIMITED = 2**62


@dataclass(frozen=True)
class MemoryUse:
    """``status`` is ok, out_of_memory, failed or timed_out; ``detail`` explains all but ok."""

    status: str
    extra_bytes: int | None = None  # peak beyond the inputs, gradients included
    seconds: float | None = None  # of the loss with its gradient, or of the step, once warm
    first_seconds: float | None = None  # of the same call before it, of those who compile
    detail: str = ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the CPU's or the GPU's allocator refused."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text or "bad_alloc" in text
    )


def status_bytes(field: str) -> int:
    """A ``Vm...`` entry of this process.

    Raises:
        OSError: the system does not tell.
    """
    for line in Path("/proc/self/status").read_text(errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def free_bytes() -> int:
    """What a process may take before the CPU's allocator should refuse; 0 where it is unknown."""
    return int(0.9 * (available_memory() or 0))


@contextlib.contextmanager
def limited_memory(extra_bytes: int) -> Iterator[None]:
    """Inside, the CPU's allocator refuses to give more than so many bytes beyond what is taken, or
    the system might kill this process, or another one. 0 sets no limit.
    """
    try:
        import resource

        before = resource.getrlimit(resource.RLIMIT_DATA)
        if extra_bytes:
            soft = min(status_bytes("VmData") + extra_bytes, _UNLIMITED)
            resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    except (ImportError, OSError, ValueError):  # a system without such a limit
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def measure_on_gpu(implementation: Implementation, inputs: Inputs) -> MemoryUse:
    """One training call under the allocator's peak counter."""
    inputs = inputs.requiring_grad()
    try:
        if implementation.compiles:  # trying out kernels takes memory that later calls do not need
            implementation.loss(inputs).backward()
            inputs = inputs.requiring_grad()  # without the gradients of that call
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        implementation.loss(inputs).backward()
        torch.cuda.synchronize()
    except Exception as error:  # a rival that dies is a row of the table
        if is_out_of_memory(error):
            return MemoryUse("out_of_memory", detail=first_line(error))
        return MemoryUse("failed", detail=first_line(error))
    return MemoryUse("ok", torch.cuda.max_memory_allocated() - before)


def measure_in_child(
    name: str,
    dtype: torch.dtype,
    case: Case,
    seed: int,
    limit_bytes: int | None = None,
    timeout: float | None = None,
) -> MemoryUse:
    """The same on the CPU, in `benchmarks.memory_probe`."""
    request = {
        "implementation": name,
        "dtype": str(dtype).removeprefix("torch."),
        "case": case.to_json(),
        "seed": seed,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    return run_probe("benchmarks.memory_probe", request, limit_bytes, timeout)


def run_probe(
    module: str, request: dict, limit_bytes: int | None = None, timeout: float | None = None
) -> MemoryUse:
    """Run a probe module in a process of its own.

    Args:
        module: takes a JSON request as its argument and prints a JSON `MemoryUse`.
        request: what to measure; thread count and memory limit are added to it.
        limit_bytes: what the process may take before its allocator refuses; None is 90% of what
            is free.
        timeout: in seconds; the child is ended then.
    """
    if limit_bytes is None:
        limit_bytes = free_bytes()
    request = {**request, "limit_bytes": limit_bytes, "threads": torch.get_num_threads()}
    child = run_child(module, request, timeout)
    if child.code is None:
        return MemoryUse("timed_out", detail=f"not done after {timeout:.0f} s")
    if child.code == 0:
        return MemoryUse(**json.loads(child.output.strip().splitlines()[-1]))
    if child.code == -signal.SIGKILL:
        return MemoryUse("out_of_memory", detail="the system killed the process")
    if child.code == -signal.SIGABRT and "bad_alloc" in child.errors:
        return MemoryUse("out_of_memory", detail="std::bad_alloc")
    last = (child.errors.strip().splitlines() or [f"exit code {child.code}"])[-1]
    return MemoryUse("failed", detail=last)


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
