"""The child process that checks a compiled rival on the CPU.

A compiler may take any time, and only the end of its process stops it. When the parent process
compiles the same again, torch takes it from its cache on disk.

Not for direct use: ``python -m benchmarks.loss.check_probe REQUEST`` takes a JSON `CheckRequest`;
the last line that it prints is a JSON `CheckAnswer` or `CheckFailure`.
"""

from __future__ import annotations

import json
import sys
from typing import TypedDict, final

import torch

from benchmarks.cases import Case, make_inputs
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.loss.correctness import check
from benchmarks.measure.memory import LossRequest, first_line
from benchmarks.measure.records import CheckRecord
from benchmarks.measure.timing import time_training


class CheckRequest(LossRequest):
    """One implementation on one case."""

    threads: int


@final
class CheckAnswer(TypedDict):
    """The check, and seconds of the loss with its gradient."""

    check: CheckRecord
    first_seconds: float  # of the first call, which compiles
    seconds: float  # of a later one


@final
class CheckFailure(TypedDict):
    """Why there is no check."""

    error: str


def probe(request: CheckRequest) -> CheckAnswer | CheckFailure:
    torch.set_num_threads(request["threads"])
    torch.set_float32_matmul_precision(request["float32_matmul_precision"])
    implementation = IMPLEMENTATIONS[request["implementation"]]()
    dtype, case = getattr(torch, request["dtype"]), Case(**request["case"])
    inputs = make_inputs(case, request["seed"]).to("cpu", dtype)
    try:
        first = time_training(implementation.loss, inputs)["both"]
        outcome = check(implementation, "cpu", dtype, request["seed"], case)
        seconds = time_training(implementation.loss, inputs)["both"]
    except Exception as error:  # reported to the parent, which makes a row of it
        return {"error": first_line(error)}
    return {"check": outcome.to_json(), "seconds": seconds, "first_seconds": first}


if __name__ == "__main__":
    print(json.dumps(probe(json.loads(sys.argv[1]))))
