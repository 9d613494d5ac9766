"""Measures contenders on one case after another, each checked at its channels and classes."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.cases import Case, make_inputs
from benchmarks.implementations.contenders import Contender
from benchmarks.loss.case import LossCase, LossOptions, row_without_figure
from benchmarks.loss.check import LossCheck
from benchmarks.loss.correctness import CHECK_CASE
from benchmarks.measure.limits import memory_bandwidth
from benchmarks.measure.memory import first_line, limited_memory
from benchmarks.measure.records import case_record
from benchmarks.measure.results import Kept, Results
from benchmarks.measure.steps import Steps
from cac_ext.train.runtime.memory import is_out_of_memory

#: Share of the budget for the yardstick of memory.
BANDWIDTH_SHARE = 0.02


class LossRun:
    """State that outlives a case: speeds and checks of the contenders, limits of the machine.

    Args:
        results: to fill.
        contenders, options: what is measured, and how.
        time_budget: seconds for everything.
        started: when they began, on the clock of `time.monotonic`; None means now.
    """

    def __init__(
        self,
        results: Results,
        contenders: list[Contender],
        options: LossOptions,
        time_budget: float,
        started: float | None = None,
    ) -> None:
        self.results = results
        self.contenders = contenders
        self.options = options
        self.time_budget = time_budget
        self.deadline = (time.monotonic() if started is None else started) + time_budget
        self._check = LossCheck(results, options.device, options.seed, self.deadline)
        self._cases: list[Case] = []
        self._current: LossCase | None = None

    def run(
        self, cases: list[Case], kept: Kept | None = None, end: Callable[[], object] | None = None
    ) -> None:
        """Measure all cases.

        Args:
            cases: in this order.
            kept: saves the rows after each case.
            end: ends the process. If a call has not returned long after the deadline, it is called
                as soon as every row has its reason. None waits for the call.
        """
        self._cases = cases
        checks = len({(case.C, case.K) for case in cases})
        total = 1 + len(self.contenders) * (checks + 2 * len(cases))

        def give_up(step: str, seconds: float) -> None:
            self._explain(step, seconds)
            if end is not None:
                end()

        with Steps(total, self.deadline, end and give_up, unit="step") as self.steps:
            self._measure_bandwidth()
            self._seconds_per_value = self._time_inputs()
            for i, case in enumerate(cases):
                self._check_all(case)
                left = self.deadline - time.monotonic()
                self._run_case(case, time.monotonic() + left / (len(cases) - i))
                if kept is not None:
                    kept.save_so_far()

    def _measure_bandwidth(self) -> None:
        self.steps.begin("memory bandwidth")
        try:
            with limited_memory(self.options.call_limit()):
                self.results.limits["memory_bandwidth"] = memory_bandwidth(
                    self.options.device, seconds=BANDWIDTH_SHARE * self.time_budget
                )
        except Exception as error:  # a yardstick: no reason to measure nothing else
            self.results.skip("memory bandwidth", first_line(error))
        self.steps.update()

    def _time_inputs(self) -> float:
        """Seconds to make one value of the inputs of a case."""
        start = time.perf_counter()
        make_inputs(CHECK_CASE, self.options.seed)
        return (time.perf_counter() - start) / _values(CHECK_CASE)

    def _check_all(self, case: Case) -> None:
        """Compare loss and gradient with the oracle, which also shows each speed roughly."""
        # Compilers come last: they take the time that is left.
        for contender in sorted(self.contenders, key=lambda one: one.implementation.compiles):
            known = self._check.knows(contender, case)
            if not known:
                self.steps.begin(f"checking {contender.label()} at C = {case.C}, K = {case.K}")
            contender.broken = self._check.fault(contender, case)
            if not known:
                self.steps.update()

    def _run_case(self, case: Case, deadline: float) -> None:
        self.steps.begin(f"{case.name}: inputs")
        left = deadline - time.monotonic()
        predicted = self._seconds_per_value * _values(case)
        if predicted > left:
            reason = (
                f"its inputs alone would take about {predicted:.1f} s, and {max(left, 0):.1f} s"
            )
            self._skip_case(case, "skipped", f"{reason} of the time budget are left")
            return
        try:
            with limited_memory(self.options.call_limit()):
                self._current = LossCase(
                    self.results, self.contenders, case, self.options, self.steps, deadline
                )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._skip_case(case, "out_of_memory", f"its inputs alone: {first_line(error)}")
            return
        self._current.run()
        self._current = None

    def _skip_case(self, case: Case, status: str, detail: str) -> None:
        self.results.cases[case.name] = case_record(case)
        for contender in self.contenders:
            # A broken contender keeps its own reason.
            why = contender.failure() or (status, detail)
            self.results.rows.append(row_without_figure(case, contender, *why))
        self.steps.update(2 * len(self.contenders))

    def _explain(self, step: str, seconds: float) -> None:
        """Add the missing rows: the run ends in the middle of ``step``."""
        if self._current is not None:
            self._current.finish()
        self.results.skip(step, f"not done after {seconds:.0f} s; the run was ended there")
        there = {(row.case, row.implementation, row.dtype) for row in self.results.rows}
        for case in self._cases:
            self.results.cases.setdefault(case.name, case_record(case))
            for contender in self.contenders:
                if (case.name, contender.name, contender.dtype_name) not in there:
                    why = contender.failure() or ("timed_out", f"the run was ended: {step}")
                    self.results.rows.append(row_without_figure(case, contender, *why))


def _values(case: Case) -> int:
    """Approximate number of random values in the inputs of a case."""
    return (case.N + 3 * case.A) * case.C
