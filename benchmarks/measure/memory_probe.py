"""The child process of `benchmarks.measure.memory`, for one implementation on the CPU.

Not for direct use: ``python -m benchmarks.measure.memory_probe REQUEST`` takes a JSON
`LossMemoryRequest`; the last line that it prints is a JSON `MemoryUse`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.cases import Case, make_inputs
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.measure.memory import (
    LossMemoryRequest,
    MemoryUse,
    first_line,
    limited_memory,
    status_bytes,
)
from cac_ext.train.runtime.memory import is_out_of_memory


class PeakGrowth:
    """Growth of the peak resident memory since construction."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # returns freed pages, which would hide growth
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
            self._resettable = True
            self._start = status_bytes("VmRSS")
            status_bytes("VmHWM")
        except OSError:
            self._resettable = False
            self._start = self._peak_of_process()

    @staticmethod
    def _peak_of_process() -> int:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def bytes(self) -> int:
        peak = status_bytes("VmHWM") if self._resettable else self._peak_of_process()
        return max(peak - self._start, 0)


def probe(request: LossMemoryRequest) -> MemoryUse:
    torch.set_num_threads(request["threads"])
    torch.set_float32_matmul_precision(request["float32_matmul_precision"])
    dtype = getattr(torch, request["dtype"])
    case = Case(**request["case"])
    implementation = IMPLEMENTATIONS[request["implementation"]]()
    # Threads, library buffers and lazy imports come before the measurement.
    small = case if implementation.compiles else replace(case, A=64, N=256)
    warm_up = make_inputs(small, request["seed"]).to("cpu", dtype)
    start = time.perf_counter()
    implementation.loss(warm_up.requiring_grad()).backward()
    first = time.perf_counter() - start if implementation.compiles else None
    del warm_up
    inputs = make_inputs(case, request["seed"]).to("cpu", dtype).requiring_grad()
    with limited_memory(request["limit_bytes"]):
        growth = PeakGrowth()
        start = time.perf_counter()
        try:
            implementation.loss(inputs).backward()
        except Exception as error:  # reported to the parent, which makes a row of it
            status = "out_of_memory" if is_out_of_memory(error) else "failed"
            return MemoryUse(status, detail=first_line(error))
        return MemoryUse("ok", growth.bytes(), time.perf_counter() - start, first)


if __name__ == "__main__":
    print(json.dumps(asdict(probe(json.loads(sys.argv[1])))))
