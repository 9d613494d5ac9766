"""Measures contenders on one case after another, each checked at its channels and classes."""

from __future__ import annotations

import time

from tqdm import tqdm

from benchmarks.cases import Case, make_inputs
from benchmarks.contenders import Contender, float32_products
from benchmarks.correctness import check, check_case_for
from benchmarks.loss_case import LossCase, LossOptions
from benchmarks.machine_limits import memory_bandwidth
from benchmarks.memory import first_line
from benchmarks.operations import Workload
from benchmarks.results import Results
from benchmarks.timing import time_training


class LossRun:
    """State that outlives a case: the contenders' rates, their checks, the machine's limits."""

    def __init__(
        self,
        results: Results,
        contenders: list[Contender],
        options: LossOptions,
        time_budget: float,
    ) -> None:
        self.results = results
        self.contenders = contenders
        self.options = options
        self.deadline = time.monotonic() + time_budget
        #: Why a contender is not measured ("": it is), by its label, channels and classes.
        self._checked: dict[tuple[str, int, int], str] = {}

    def run(self, cases: list[Case]) -> None:
        checks = len({(case.C, case.K) for case in cases})
        steps = len(self.contenders) * (checks + 2 * len(cases))
        with tqdm(total=steps, unit="step", disable=None, dynamic_ncols=True) as self.bar:
            self.bar.set_description("memory bandwidth")
            self.results.limits["memory_bandwidth"] = memory_bandwidth(self.options.device)
            for i, case in enumerate(cases):
                self._check_all(case)
                left = max(self.deadline - time.monotonic(), 1.0)
                deadline = time.monotonic() + left / (len(cases) - i)
                LossCase(
                    self.results, self.contenders, case, self.options, self.bar, deadline
                ).run()

    def _check_all(self, case: Case) -> None:
        """Equal loss and gradient first, and a first idea of everyone's speed."""
        for contender in self.contenders:
            key = (contender.label(), case.C, case.K)
            if key not in self._checked:
                self.bar.set_description(
                    f"checking {contender.label()} at C = {case.C}, K = {case.K}"
                )
                with float32_products(contender.precision):
                    self._checked[key] = self._check(contender, check_case_for(case))
                self.bar.update()
            contender.broken = self._checked[key]

    def _check(self, contender: Contender, case: Case) -> str:
        """Why it must not be timed, or nothing."""
        implementation, device = contender.implementation, self.options.device
        unsupported = implementation.unsupported(device, contender.dtype)
        if unsupported:
            return unsupported
        try:
            outcome = check(implementation, str(device), contender.dtype, self.options.seed, case)
        except Exception as error:
            return first_line(error)
        self.results.checks.append({**outcome.to_json(), "dtype": contender.dtype_name})
        if not outcome.passed:
            return (
                f"wrong result: relative error {outcome.loss_error:.1e} of the loss, "
                f"{outcome.gradient_error:.1e} of the gradient at C = {case.C}, K = {case.K}"
            )
        if contender.seconds_per_operation is None:
            inputs = make_inputs(case, self.options.seed)
            operations = implementation.executed_operations(Workload.of(inputs), "both")
            inputs = inputs.to(device, contender.dtype)
            seconds = time_training(implementation.loss, inputs)["both"]
            contender.seconds_per_operation = seconds / operations
        return ""
