"""Every contender is compared with the oracle before it is timed, within the time budget."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch

from benchmarks.cases import Case, make_inputs
from benchmarks.implementations.contenders import Contender, float32_products
from benchmarks.loss.check_probe import CheckAnswer, CheckFailure, CheckRequest
from benchmarks.loss.correctness import check, check_case_for
from benchmarks.measure.children import run_child
from benchmarks.measure.memory import first_line
from benchmarks.measure.records import CheckRecord
from benchmarks.measure.results import Results
from benchmarks.measure.timing import time_training
from benchmarks.operations import Workload

#: Anchors and negatives of the first call: milliseconds in a sound implementation.
FIRST_A, FIRST_N = 32, 1_024
#: One compiler may take this share of the time left, then it is ended.
COMPILER_SHARE = 0.25


class LossCheck:
    """Whether contenders are correct, at the channels and classes of each case.

    Args:
        results: receives every check.
        device: of the contenders.
        seed: of all inputs.
        deadline: a check that is predicted to end later is not begun.
    """

    def __init__(self, results: Results, device: torch.device, seed: int, deadline: float) -> None:
        self.results, self.device, self.seed, self.deadline = results, device, seed, deadline
        #: Why a contender is not measured, or "", by its label, channels and classes.
        self._known: dict[tuple[str, int, int], str] = {}

    def knows(self, contender: Contender, case: Case) -> bool:
        """Whether it was checked before, at the channels and classes of the case."""
        return (contender.label(), case.C, case.K) in self._known

    def fault(self, contender: Contender, case: Case) -> str:
        """Why the contender must not be timed on this case, or "".

        The first check also leaves a rough idea of the contender's speed.
        """
        key = contender.label(), case.C, case.K
        if key not in self._known:
            with float32_products(contender.precision):
                self._known[key] = self._check(contender, check_case_for(case))
        return self._known[key]

    def _check(self, contender: Contender, case: Case) -> str:
        unsupported = contender.implementation.unsupported(self.device, contender.dtype)
        if unsupported:
            return unsupported
        left = self.deadline - time.monotonic()
        if left <= 0:
            return "the time budget was used up before its result was checked"
        if contender.implementation.compiles and self.device.type == "cpu":
            return self._check_in_child(contender, case, COMPILER_SHARE * left)
        try:
            return self._check_here(contender, case, left)
        except Exception as error:  # a rival that fails is a row of the table
            return first_line(error)

    def _check_here(self, contender: Contender, case: Case, left: float) -> str:
        implementation = contender.implementation
        if contender.seconds_per_operation is None and not implementation.compiles:
            self._time(contender, replace(case, A=FIRST_A, N=FIRST_N), calls=2)
        workload = Workload.of(make_inputs(case, self.seed))
        predicted = 2 * contender.predicted(workload)  # one call to check and one to time
        if predicted > left:
            return (
                f"checking its result would take about {predicted:.0f} s, and {left:.0f} s of the "
                "time budget are left"
            )
        outcome = check(implementation, str(self.device), contender.dtype, self.seed, case)
        fault = self._judge(contender, outcome.to_json())
        if not fault and not contender.measured_operations:
            self._time(contender, case, calls=1)
        return fault

    def _time(self, contender: Contender, case: Case, calls: int) -> None:
        """A rough idea of the speed: the shortest of so many calls."""
        inputs = make_inputs(case, self.seed)
        operations = contender.implementation.executed_operations(Workload.of(inputs), "both")
        inputs = inputs.to(self.device, contender.dtype)
        loss = contender.implementation.loss
        seconds = min(time_training(loss, inputs)["both"] for _ in range(calls))
        contender.seconds_per_operation = seconds / max(operations, 1)

    def _check_in_child(self, contender: Contender, case: Case, seconds: float) -> str:
        """In a child process: nothing else stops a compiler."""
        request: CheckRequest = {
            "implementation": contender.name,
            "dtype": str(contender.dtype).removeprefix("torch."),
            "case": case.to_json(),
            "seed": self.seed,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
        }
        child = run_child("benchmarks.loss.check_probe", request, seconds)
        if child.code is None:
            return f"not compiled and checked after {seconds:.0f} s, its share of the time budget"
        if child.code:
            last = child.errors.strip().splitlines()[-1:] or [f"exit code {child.code}"]
            return f"its check ended: {last[0]}"
        answer: CheckAnswer | CheckFailure = json.loads(child.output.strip().splitlines()[-1])
        if "error" in answer:
            return answer["error"]
        if not contender.measured_operations:
            operations = contender.implementation.executed_operations(
                Workload.of(make_inputs(case, self.seed)), "both"
            )
            contender.seconds_per_operation = answer["seconds"] / max(operations, 1)
            contender.first_seconds = answer["first_seconds"]
        return self._judge(contender, answer["check"])

    def _judge(self, contender: Contender, outcome: CheckRecord) -> str:
        self.results.checks.append({**outcome, "dtype": contender.dtype_name})
        if outcome["passed"]:
            return ""
        return (
            f"wrong result: relative error {outcome['loss_error']:.1e} of the loss, "
            f"{outcome['gradient_error']:.1e} of the gradient "
            f"at C = {outcome['C']}, K = {outcome['K']}"
        )
