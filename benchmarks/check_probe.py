"""The process in which a compiled rival is checked on the CPU; not for direct use.

Compiling takes as long as the compiler likes, and nothing but the end of its process stops it. What
is compiled here comes from torch's cache on disk when this process's parent compiles it again.

``python -m benchmarks.check_probe REQUEST`` with a JSON request; the last line printed is JSON.
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.cases import Case, make_inputs
from benchmarks.correctness import check
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.memory import first_line
from benchmarks.timing import time_training


def probe(request: dict) -> dict:
    """The check, and seconds of the first loss with its gradient, which compiles, and of a later
    one; or the error."""
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
