"""The child process that measures the peak memory of one training step.

Not for direct use: ``python -m benchmarks.step.probe REQUEST`` takes a JSON `StepMemoryRequest`;
the last line that it prints is a JSON `MemoryUse`. The peak counts weights, gradients, optimizer
state, batch, bank and activations.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TypedDict

import torch

from benchmarks.measure.memory import (
    MemoryUse,
    ProbeLimits,
    first_line,
    limited_memory,
)
from benchmarks.measure.memory_probe import PeakGrowth
from benchmarks.step.training_step import TrainingStep, step_config
from cac_ext.train.runtime.memory import is_out_of_memory


class StepRequest(TypedDict):
    """One training step."""

    config: str
    overrides: list[str]
    loss: str
    negatives: int
    batch: int
    seed: int


class StepMemoryRequest(StepRequest, ProbeLimits):
    """As this process receives it."""


def probe(request: StepMemoryRequest) -> MemoryUse:
    torch.set_num_threads(request["threads"])
    config = step_config(request["config"], request["overrides"])
    device = torch.device("cpu")
    seed = request["seed"]
    # Starts threads and lazy imports. Some networks cannot normalize over a single image.
    TrainingStep(config, request["loss"], 64, 2, device, seed).run()
    with limited_memory(request["limit_bytes"]):
        growth = PeakGrowth()
        try:
            step = TrainingStep(
                config, request["loss"], request["negatives"], request["batch"], device, seed
            )
            step.warm_up()
            start = time.perf_counter()
            step.run()
            seconds = time.perf_counter() - start
        except Exception as error:  # reported to the parent, which makes a row of it
            status = "out_of_memory" if is_out_of_memory(error) else "failed"
            return MemoryUse(status, detail=first_line(error))
        return MemoryUse("ok", growth.bytes(), seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(probe(json.loads(sys.argv[1])))))
