"""Measures contenders on one case, interleaved, within a time budget, even if some fail."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

import torch

from benchmarks.cases import Case, Inputs, make_inputs
from benchmarks.implementations.contenders import Contender, float32_products
from benchmarks.measure import units
from benchmarks.measure.limits import MatrixRates
from benchmarks.measure.memory import (
    MemoryUse,
    first_line,
    free_bytes,
    limited_memory,
    measure_in_child,
    measure_on_gpu,
)
from benchmarks.measure.peaks import Peaks
from benchmarks.measure.records import case_record
from benchmarks.measure.results import Results, Row
from benchmarks.measure.steps import Steps
from benchmarks.measure.timing import percentile, time_forward, time_training
from benchmarks.operations import PHASES, Workload
from cac_ext.train.runtime.memory import is_out_of_memory

#: A call shorter than this many seconds is run once untimed before it counts.
WARM_UP_BELOW = 3.0
#: Most calls of a slow contender with the rest of the budget.
SLOW_REPEATS = 3
#: Cost of measuring a contender, in calls of loss and gradient: memory in a child process, and one
#: timed round (with and without gradient).
MEMORY_CALLS, ROUND_CALLS = 1.0, 1.5
#: A further call must fit even if it takes this many times the median.
MARGIN = 1.25
#: A prediction from a small call is rough and mostly too high, at most by this factor.
ROUGH = 5
#: Share of the negatives in the trial call before the first call of full size.
PART = 1 / 16
#: Seconds that a child process for memory takes beyond the call, before the first one is timed.
START_UP = 4.0
#: Shares of the time of a case for the matrix-product rates of all types, and for the memory of all
#: contenders. The timed calls get the rest.
RATES_SHARE, MEMORY_SHARE = 0.1, 0.5


@dataclass(frozen=True)
class LossOptions:
    """How every case is measured."""

    device: torch.device
    seed: int
    repeats: int  # timed calls each, at most
    memory: bool = True  # whether to measure memory
    memory_limit: int | None = None  # bytes of a CPU call; None is 90% of the free memory

    def call_limit(self) -> int:
        """Bytes that one call may take on the CPU; 0, no limit, on a GPU."""
        return 0 if self.device.type == "cuda" else self.memory_limit or free_bytes()


@dataclass
class _Job:
    """One contender in one kind of call: without gradient, or loss and gradient."""

    contender: Contender
    training: bool
    samples: list[dict[str, float]] = field(default_factory=list)
    warmed_up: bool = True
    spent: float = 0.0

    @property
    def expected(self) -> float:
        return percentile([max(sample.values()) for sample in self.samples], 0.5)

    def run(self, inputs: Inputs) -> None:
        measure = time_training if self.training else time_forward
        start = time.perf_counter()
        with float32_products(self.contender.precision):
            self.samples.append(measure(self.contender.implementation.loss, inputs))
        self.spent += time.perf_counter() - start


def row_without_figure(case: Case, contender: Contender, status: str, detail: str) -> Row:
    """Of a contender that was not measured."""
    return Row(case.name, contender.name, contender.dtype_name, "both", status, detail)


class LossCase:
    """One case; `run` leaves its rows in the results, also if it is interrupted."""

    def __init__(
        self,
        results: Results,
        contenders: list[Contender],
        case: Case,
        options: LossOptions,
        steps: Steps,
        deadline: float,
    ) -> None:
        self.results = results
        self.contenders = contenders
        self.case = case
        self.options = options
        self.steps = steps
        self.deadline = deadline
        self._inputs = make_inputs(case, options.seed)
        self._workload = Workload.of(self._inputs)
        self._by_dtype: dict[torch.dtype, Inputs] = {}
        self._rates = MatrixRates(
            options.device,
            case.C,
            types=len({contender.dtype_name for contender in contenders}),
            seconds=RATES_SHARE * max(self._left(), 0.0),
            deadline=deadline,
        )
        self._peaks = Peaks(options.device)
        self._jobs: list[_Job] = []
        self._memory: dict[str, MemoryUse] = {}
        self._start_up = START_UP
        self._memory_left = MEMORY_SHARE * max(self._left(), 0.0)
        self._rows: list[Row] = []
        self._finished = False

    def run(self) -> None:
        self.results.cases[self.case.name] = case_record(self.case, self._workload)
        try:
            self._select()
            self._first_round()
            self._later_rounds()
            self._rates.sample()
            self._peaks.sample()
        finally:
            self.finish()

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _operations(self, contender: Contender) -> int:
        return contender.implementation.executed_operations(self._workload, "both")

    def _select(self) -> None:
        """Refuse contenders that take too much time or memory; the others become jobs."""
        reserved = 0.0  # seconds, for the timed rounds of earlier contenders
        # Fast ones come first: a slow rival gets the time that they leave.
        for contender in sorted(self.contenders, key=lambda one: one.predicted(self._workload)):
            refused = self._consider(contender, reserved)
            self.steps.update()
            if refused is not None:
                self._add_rows(contender, [], *refused)
                self.steps.update()
                continue
            self._jobs += [_Job(contender, training) for training in (True, False)]
            reserved += SLOW_REPEATS * ROUND_CALLS * contender.predicted(self._workload)

    def _consider(self, contender: Contender, reserved: float) -> tuple[str, str] | None:
        """Measure what comes before the rounds; ``(status, reason)`` if they are refused."""
        calls = ROUND_CALLS + (MEMORY_CALLS if self.options.memory else 0.0)
        refused = contender.failure() or self._refusal(contender, self._left() - reserved, calls)
        if refused is not None:
            return refused
        try:
            self._prepare(contender)
            self._time_part(contender)
        except Exception as error:  # a rival that fails is a row of the table
            return _status(error), first_line(error)
        refused = self._refusal(contender, self._left() - reserved, calls)
        if refused is not None:
            return refused
        self.steps.begin(f"{self.case.name}: memory of {contender.label()}")
        use = self._measure_memory(contender, self._left() - reserved)
        self._memory[contender.label()] = use
        if use.status != "ok":  # a call that failed in its child process is not made here
            return use.status, use.detail
        if use.seconds is not None:
            contender.predict_from(use.seconds, self._operations(contender))
            contender.first_seconds = use.first_seconds or 0.0
        return self._refusal(contender, self._left() - reserved, ROUND_CALLS)

    def _prepare(self, contender: Contender) -> None:
        """Inputs and matrix-product rate in the type of the contender."""
        self.steps.begin(f"{self.case.name}: matrix products in {contender.dtype_name}")
        if contender.dtype not in self._by_dtype:
            with limited_memory(self.options.call_limit()):
                inputs = self._inputs.to(self.options.device, contender.dtype)
            self._by_dtype[contender.dtype] = inputs
        self._rates.add(contender.dtype_name)
        self._peaks.add(contender)

    def _refusal(self, contender: Contender, left: float, calls: float) -> tuple[str, str] | None:
        """``(status, reason)`` if that many calls do not fit into the time, or None."""
        predicted = contender.predicted(self._workload)
        compiling = 2 * contender.first_seconds  # with and without gradient
        tolerated = 1 if contender.is_predictable(self._workload) else ROUGH
        if left > 0 and calls * predicted / tolerated + compiling <= left:
            return None
        reason = f"would take about {units.seconds(predicted)} a run"
        if compiling:
            reason += f" and {units.seconds(compiling)} to compile"
        return "skipped", f"{reason}, and {max(left, 0):.1f} s of the time budget are left for it"

    def _time_part(self, contender: Contender) -> None:
        """Time a part of the case, to predict better than from the check or a smaller case."""
        # Compiled contenders would compile anew for the part.
        if contender.implementation.compiles or contender.is_predictable(self._workload):
            return
        self.steps.begin(f"{self.case.name}: a part of it with {contender.label()}")
        inputs = self._by_dtype[contender.dtype]
        count = max(int(PART * self.case.N), 1)
        part = replace(
            inputs,
            negatives=inputs.negatives[:count],
            negative_labels=inputs.negative_labels[:count],
        )
        operations = contender.implementation.executed_operations(Workload.of(part), "both")
        with limited_memory(self.options.call_limit()), float32_products(contender.precision):
            seconds = time_training(contender.implementation.loss, part)["both"]
        contender.predict_from(seconds, operations)

    def _measure_memory(self, contender: Contender, left: float) -> MemoryUse:
        if not self.options.memory:
            return MemoryUse("ok")
        left = max(min(left, self._memory_left), 0.0)
        predicted = contender.predicted(self._workload) + self._start_up
        if predicted > left:
            reason = f"would take about {predicted:.0f} s, and {left:.1f} s are left for it"
            self.results.skip(f"{self.case.name}, memory of {contender.label()}", reason)
            return MemoryUse("ok")
        start = time.monotonic()
        with float32_products(contender.precision):
            if self.options.device.type == "cuda":
                use = measure_on_gpu(contender.implementation, self._by_dtype[contender.dtype])
            else:
                use = measure_in_child(
                    contender.name,
                    contender.dtype,
                    self.case,
                    self.options.seed,
                    limit_bytes=self.options.memory_limit,
                    timeout=left,
                )
                self._start_up = time.monotonic() - start - (use.seconds or 0.0)
        self._memory_left -= time.monotonic() - start
        return use

    def _first_round(self) -> None:
        for job in list(self._jobs):
            if job not in self._jobs:
                continue  # its contender has failed meanwhile
            contender = job.contender
            expected = contender.predicted(self._workload)
            first = max(expected, contender.first_seconds)
            if first > self._left():
                detail = f"the time budget was used up; a run takes about {units.seconds(first)}"
                self._jobs.remove(job)
                if job.training:
                    self._drop(contender, "skipped", detail)
                else:
                    self.results.skip(f"{self.case.name}, forward of {contender.label()}", detail)
            else:
                fits_twice = first + expected < self._left() and expected < WARM_UP_BELOW
                job.warmed_up = contender.implementation.compiles or fits_twice
                if job.warmed_up and self._call(job):
                    job.samples.clear()
                    job.spent = 0.0
                if job in self._jobs:
                    self._call(job)
            if not job.training:
                self.steps.update()

    def _later_rounds(self) -> None:
        """Rounds over all jobs in changing order, so that a busy moment hits all."""
        order = random.Random(self.options.seed)
        share = max(self._left(), 0.0) / max(len(self._jobs), 1)

        def allowed(job: _Job) -> bool:
            return (
                job in self._jobs
                and len(job.samples) < self.options.repeats
                and MARGIN * job.expected < self._left()
                and job.spent + job.expected <= share
            )

        while ready := [job for job in self._jobs if allowed(job)]:
            self.steps.begin(f"{self.case.name}: matrix products")
            self._rates.sample()
            self._peaks.sample()
            for job in order.sample(ready, len(ready)):
                if allowed(job):
                    self._call(job)
        while slow := [
            job
            for job in self._jobs
            if len(job.samples) < min(SLOW_REPEATS, self.options.repeats)
            and MARGIN * job.expected < self._left()
        ]:
            self._call(min(slow, key=lambda job: len(job.samples)))

    def _call(self, job: _Job) -> bool:
        """Make one timed call; False if it failed, which becomes a row of the table."""
        self.steps.begin(f"{self.case.name}: {job.contender.label()}")
        try:
            with limited_memory(self.options.call_limit()):
                job.run(self._by_dtype[job.contender.dtype])
        except Exception as error:
            self._drop(job.contender, _status(error), first_line(error))
            return False
        return True

    def _drop(self, contender: Contender, status: str, detail: str) -> None:
        self._jobs[:] = [job for job in self._jobs if job.contender is not contender]
        self._add_rows(contender, [], status, detail)

    def finish(self) -> None:
        """Add rows in the order of the contenders, with their shares of the machine's rates.

        A second call does nothing.
        """
        if self._finished:
            return
        self._finished = True
        for contender in self.contenders:
            own = [job for job in self._jobs if job.contender is contender and job.samples]
            if own:
                self._add_rows(contender, own)
        rates = self._rates.results()
        best = self.results.limits.setdefault("matrix_rate", {})
        for name, rate in rates.items():
            known = best.get(name, {"operations_per_second": 0.0})
            if rate["operations_per_second"] > known["operations_per_second"]:
                best[name] = {**rate, "case": self.case.name}
        of_case = self.results.cases[self.case.name]
        of_case["matrix_rate"] = {
            name: rate["operations_per_second"] for name, rate in rates.items()
        }
        of_case["peak"] = self._peaks.results()
        of_case["smaller_products"] = [name for name, rate in rates.items() if rate["smaller"]]
        for name, reason in self._rates.missing.items():
            self.results.skip(f"{self.case.name}, matrix products in {name}", reason)
        bandwidth = self.results.limits.get("memory_bandwidth")
        for row in self._rows:
            self._peaks.judge(row)
            if row.samples and row.executed_operations and row.dtype in rates:
                best_rate = rates[row.dtype]["operations_per_second"]
                row.share_of_matrix_rate = row.executed_operations / row.median / best_rate
            if row.samples and bandwidth and row.compulsory_bytes is not None:
                row.share_of_bandwidth = row.compulsory_bytes / row.median / bandwidth
        order = [contender.label() for contender in self.contenders]
        self._rows.sort(
            key=lambda row: (
                order.index(f"{row.implementation} {row.dtype}"),
                PHASES.index(row.phase),
            )
        )
        self.results.rows += self._rows

    def _add_rows(
        self, contender: Contender, jobs: list[_Job], status: str = "ok", detail: str = ""
    ) -> None:
        samples: dict[str, list[float]] = {}
        for job in jobs:
            for sample in job.samples:
                for phase, seconds in sample.items():
                    samples.setdefault(phase, []).append(seconds)
            if job.training:
                median = percentile(samples["both"], 0.5)
                contender.predict_from(median, self._operations(contender))
        memory = self._memory.get(contender.label())
        extra_memory = memory.extra_bytes if jobs and memory else None
        executed_operations = contender.implementation.executed_operations
        for phase in [phase for phase in PHASES if phase in samples] or ["both"]:
            self._rows.append(
                Row(
                    case=self.case.name,
                    implementation=contender.name,
                    dtype=contender.dtype_name,
                    phase=phase,
                    status=status,
                    detail=detail,
                    samples=samples.get(phase, []),
                    warmed_up=all(job.warmed_up for job in jobs),
                    extra_memory=extra_memory if phase == "both" else None,
                    executed_operations=executed_operations(self._workload, phase),
                    nominal_operations=self._workload.nominal_operations(phase),
                    compulsory_bytes=self._workload.compulsory_bytes(
                        phase, contender.dtype.itemsize
                    ),
                )
            )


def _status(error: Exception) -> str:
    return "out_of_memory" if is_out_of_memory(error) else "failed"
