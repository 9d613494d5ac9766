"""The process in which one training step's peak memory is measured; not for direct use.

``python -m benchmarks.step_probe REQUEST`` with a JSON request; the last line printed is a JSON
`MemoryUse`. The peak counts weights, gradients, optimiser state, batch, bank and activations.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

import torch

from benchmarks.memory import MemoryUse, first_line, is_out_of_memory, limited_memory
from benchmarks.memory_probe import PeakGrowth
from benchmarks.training_step import TrainingStep, step_config


def probe(request: dict) -> MemoryUse:
    torch.set_num_threads(request["threads"])
    config = step_config(request["config"], request["overrides"])
    device = torch.device("cpu")
    seed = request["seed"]
    # Threads, lazy imports. Two images: some networks cannot normalise over a single one.
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
