"""The child process that measures the peak memory of one sample.

Not for direct use: ``python -m benchmarks.data.probe REQUEST`` takes a JSON `SampleMemoryRequest`;
the last line that it prints is a JSON `MemoryUse`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch

from benchmarks.data.pictures import (
    LARGEST_SCALE,
    TINY,
    USUAL_SCALE,
    Files,
    PictureCase,
    write_files,
)
from benchmarks.data.pipelines import PIPELINES, Work, augment_config
from benchmarks.measure.memory import (
    MemoryUse,
    ProbeLimits,
    first_line,
    limited_memory,
)
from benchmarks.measure.memory_probe import PeakGrowth
from cac_ext.train.runtime.memory import is_out_of_memory


class SampleRequest(TypedDict):
    """One sample of a pipeline, at the largest scale."""

    pipeline: str
    task: str
    case: dict[str, Any]  # arguments of `PictureCase`
    image: str
    mask: str
    seed: int


class SampleMemoryRequest(SampleRequest, ProbeLimits):
    """As this process receives it."""


def probe(request: SampleMemoryRequest) -> MemoryUse:
    """``seconds`` are those of a second sample, at the usual scale."""
    torch.set_num_threads(request["threads"])
    case = PictureCase(**request["case"])
    pipeline, seed = PIPELINES[request["pipeline"]], request["seed"]

    def read(files: Files, case: PictureCase, scale: float) -> None:
        augment = augment_config(case, scale)
        work = Work(files, request["task"], augment, case.batch, seed)
        pipeline.prepare(work).samples[0]

    files = Files(Path(request["image"]), Path(request["mask"]))
    try:
        with tempfile.TemporaryDirectory() as folder:  # lazy imports and library buffers
            read(write_files(TINY, Path(folder), seed), TINY, LARGEST_SCALE)
        with limited_memory(request["limit_bytes"]):
            growth = PeakGrowth()
            read(files, case, LARGEST_SCALE)
            peak = growth.bytes()
            start = time.perf_counter()
            read(files, case, USUAL_SCALE)
            return MemoryUse("ok", peak, time.perf_counter() - start)
    except Exception as error:  # reported to the parent, which makes a row of it
        return MemoryUse(
            "out_of_memory" if is_out_of_memory(error) else "failed", detail=first_line(error)
        )


if __name__ == "__main__":
    print(json.dumps(asdict(probe(json.loads(sys.argv[1])))))
