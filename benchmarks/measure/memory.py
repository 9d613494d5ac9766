"""Peak memory of one loss with its gradient, beyond its inputs.

On a GPU the caching allocator keeps the peak. On the CPU nothing does, so the call is made in a
child process (`benchmarks.measure.memory_probe`), whose peak resident memory is read before and
after.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from benchmarks.cases import Case, Inputs
from benchmarks.implementations import Implementation
from benchmarks.measure.children import run_child
from benchmarks.measure.machine import available_memory
from cac_ext.train.runtime.memory import is_out_of_memory

#: The largest limit that fits into the number type of the system.
_UNLIMITED = 2**62


class LossRequest(TypedDict):
    """One loss with its gradient, as a child process is asked for it."""

    implementation: str
    dtype: str
    case: dict[str, Any]  # arguments of `Case`
    seed: int
    float32_matmul_precision: str


class ProbeLimits(TypedDict):
    """What `run_probe` adds to every request."""

    threads: int
    limit_bytes: int  # 0 sets no limit


class LossMemoryRequest(LossRequest, ProbeLimits):
    """As `benchmarks.measure.memory_probe` receives it."""


@dataclass(frozen=True)
class MemoryUse:
    """``status`` is ok, out_of_memory, failed or timed_out; ``detail`` explains all but ok."""

    status: str
    extra_bytes: int | None = None  # peak beyond the inputs, gradients included
    seconds: float | None = None  # of the loss with its gradient, or of the step, when warm
    first_seconds: float | None = None  # of the first call, which compiles; None without compiler
    detail: str = ""


def status_bytes(field: str) -> int:
    """A ``Vm...`` entry of this process.

    Raises:
        OSError: the system does not report it.
    """
    for line in Path("/proc/self/status").read_text(errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def free_bytes() -> int:
    """Bytes that a process may take before the CPU's allocator should refuse; 0 if unknown."""
    return int(0.9 * (available_memory() or 0))


@contextlib.contextmanager
def limited_memory(extra_bytes: int) -> Iterator[None]:
    """Inside, the CPU's allocator refuses more than so many bytes beyond the present use.

    Without a limit (0) the system might kill this process, or another one.
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
        if implementation.compiles:  # tuning takes memory that later calls do not need
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
    """The same on the CPU, in `benchmarks.measure.memory_probe`."""
    request: LossRequest = {
        "implementation": name,
        "dtype": str(dtype).removeprefix("torch."),
        "case": case.to_json(),
        "seed": seed,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    return run_probe("benchmarks.measure.memory_probe", request, limit_bytes, timeout)


def run_probe(
    module: str,
    request: Mapping[str, object],
    limit_bytes: int | None = None,
    timeout: float | None = None,
) -> MemoryUse:
    """Run a probe module in a child process.

    Args:
        module: takes a JSON request as its argument and prints a JSON `MemoryUse`.
        request: what to measure; `ProbeLimits` are added to it.
        limit_bytes: that the process may take before its allocator refuses; None is 90% of the
            free memory.
        timeout: seconds after which the child is ended.
    """
    if limit_bytes is None:
        limit_bytes = free_bytes()
    limits: ProbeLimits = {"limit_bytes": limit_bytes, "threads": torch.get_num_threads()}
    child = run_child(module, {**request, **limits}, timeout)
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
    """Type and first line of an error, as the reason in a row."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
