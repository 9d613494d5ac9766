"""Measures contenders on one case: interleaved, within a time budget, whatever they do."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from benchmarks.cases import Case, Inputs, make_inputs
from benchmarks.contenders import TYPES, Contender, float32_products
from benchmarks.machine_limits import MatrixRate
from benchmarks.memory import (
    MemoryUse,
    first_line,
    free_bytes,
    is_out_of_memory,
    limited_memory,
    measure_in_child,
    measure_on_gpu,
)
from benchmarks.operations import PHASES, Workload
from benchmarks.results import Results, Row
from benchmarks.timing import percentile, time_forward, time_training

#: A call shorter than this is run once untimed before it counts.
WARM_UP_BELOW = 3.0
#: Times a slow call is repeated with what is left of the budget.
SLOW_REPEATS = 3
#: Cost of measuring a contender, in calls of loss and gradient: one that finds its memory in a
#: process of its own, and one timed round (with and without gradient).
MEMORY_CALLS, ROUND_CALLS = 1.0, 1.5


@dataclass(frozen=True)
class LossOptions:
    """What is asked of every case."""

    device: torch.device
    seed: int
    repeats: int  # timed calls each, at most
    memory: bool = True  # measure it as well
    memory_limit: int | None = None  # of a CPU call in bytes; None is 90% of what is free

    def call_limit(self) -> int:
        """Bytes that one call may take on the CPU; 0 without a limit, as on a GPU."""
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


class LossCase:
    """One case; `run` leaves its rows in the results, also if it is interrupted."""

    def __init__(
        self,
        results: Results,
        contenders: list[Contender],
        case: Case,
        options: LossOptions,
        bar: tqdm,
        deadline: float,
    ) -> None:
        self.results = results
        self.contenders = contenders
        self.case = case
        self.options = options
        self.bar = bar
        self.deadline = deadline
        self._inputs = make_inputs(case, options.seed)
        self._workload = Workload.of(self._inputs)
        self._by_dtype: dict[torch.dtype, Inputs] = {}
        self._rates: dict[str, MatrixRate] = {}
        self._jobs: list[_Job] = []
        self._memory: dict[str, MemoryUse] = {}
        self._rows: list[Row] = []

    def run(self) -> None:
        self.results.cases[self.case.name] = {
            **self.case.to_json(),
            "workload": vars(self._workload),
        }
        try:
            self._select()
            self._first_round()
            self._later_rounds()
            self._sample_rates(self._rates)
        finally:
            self._finish()

    def _select(self) -> None:
        """Refuse who takes too much time or memory; the others become jobs."""
        reserved = 0.0  # seconds, for the timed rounds of those before
        # The fast ones first: a slow rival gets what they leave.
        for contender in sorted(self.contenders, key=lambda one: one.predicted(self._workload)):
            calls = ROUND_CALLS + (MEMORY_CALLS if self.options.memory else 0.0)
            refused = self._refusal(contender, self.deadline - reserved, calls)
            if refused is None:
                self._prepare(contender)
                self.bar.set_description(f"{self.case.name}: memory of {contender.label()}")
                use = self._measure_memory(contender)
                self._memory[contender.label()] = use
                if use.status == "ok":
                    if use.seconds and not contender.implementation.compiles:
                        contender.predict_from(use.seconds, self._operations(contender))
                    refused = self._refusal(contender, self.deadline - reserved, ROUND_CALLS)
                else:
                    refused = use.status, use.detail
            self.bar.update()
            if refused is not None:
                self._add_rows(contender, [], *refused)
                self.bar.update()
                continue
            self._jobs += [_Job(contender, training) for training in (True, False)]
            reserved += SLOW_REPEATS * ROUND_CALLS * contender.predicted(self._workload)

    def _operations(self, contender: Contender) -> int:
        return contender.implementation.executed_operations(self._workload, "both")

    def _prepare(self, contender: Contender) -> None:
        """Inputs and matrix-product rate of the contender's type."""
        device, name = self.options.device, contender.dtype_name
        if contender.dtype not in self._by_dtype:
            self._by_dtype[contender.dtype] = self._inputs.to(device, contender.dtype)
        if name not in self._rates:
            rate = MatrixRate(device, contender.dtype, self.case.C)
            self._sample_rates({name: rate})  # so that an interrupted case has one
            self._rates[name] = rate

    @staticmethod
    def _sample_rates(rates: dict[str, MatrixRate]) -> None:
        for name, rate in rates.items():
            with float32_products(TYPES[name][1]):
                rate.sample()

    def _refusal(
        self, contender: Contender, deadline: float, calls: float
    ) -> tuple[str, str] | None:
        """``(status, reason)`` if this contender is not to be run so many times, or None."""
        if contender.broken:
            wrong = contender.broken.startswith("wrong result")
            return ("failed" if wrong else "skipped"), contender.broken
        predicted = contender.predicted(self._workload)
        left = deadline - time.monotonic()
        # Before a first run of real size the prediction is rough, mostly too high.
        if calls * predicted > max(left, 1.0) * (1 if contender.measured else 5):
            return (
                "skipped",
                f"would take about {predicted:.0f} s a run, "
                f"and {max(left, 0):.0f} s of the time budget are left",
            )
        return None

    def _measure_memory(self, contender: Contender) -> MemoryUse:
        if not self.options.memory:
            return MemoryUse("ok")
        with float32_products(contender.precision):
            if self.options.device.type == "cuda":
                inputs = self._by_dtype[contender.dtype]
                return measure_on_gpu(contender.implementation, inputs)
            return measure_in_child(
                contender.name,
                contender.dtype,
                self.case,
                self.options.seed,
                limit_bytes=self.options.memory_limit,
                timeout=max(self.deadline - time.monotonic(), 60.0),
            )

    def _first_round(self) -> None:
        for job in list(self._jobs):
            if job not in self._jobs:
                continue  # its contender failed meanwhile
            contender = job.contender
            self.bar.set_description(f"{self.case.name}: {contender.label()}")
            expected = contender.predicted(self._workload)
            if expected > WARM_UP_BELOW and time.monotonic() > self.deadline:
                self._jobs.remove(job)
                if job.training:
                    detail = f"the time budget was used up; a run takes about {expected:.0f} s"
                    self._drop(contender, "skipped", detail)
                self.bar.update()
                continue
            job.warmed_up = contender.implementation.compiles or expected < WARM_UP_BELOW
            if job.warmed_up and self._call(job):
                job.samples.clear()
                job.spent = 0.0
            if job in self._jobs:
                self._call(job)
            if not job.training:
                self.bar.update()

    def _later_rounds(self) -> None:
        """Rounds over all jobs in changing order, so that a busy moment hits everyone."""
        order = random.Random(self.options.seed)
        share = max(self.deadline - time.monotonic(), 0.0) / max(len(self._jobs), 1)
        self.bar.set_description(f"{self.case.name}: interleaved runs")

        def allowed(job: _Job) -> bool:
            left = self.deadline - time.monotonic()
            return (
                job in self._jobs
                and len(job.samples) < self.options.repeats
                and job.expected < left
                and job.spent + job.expected <= share
            )

        while ready := [job for job in self._jobs if allowed(job)]:
            self._sample_rates(self._rates)
            for job in order.sample(ready, len(ready)):
                if allowed(job):
                    self._call(job)
        while slow := [
            job
            for job in self._jobs
            if len(job.samples) < min(SLOW_REPEATS, self.options.repeats)
            and job.expected < self.deadline - time.monotonic()
        ]:
            self._call(min(slow, key=lambda job: len(job.samples)))

    def _call(self, job: _Job) -> bool:
        """One timed call, and whether it came to its end: one that dies is a row of the table."""
        try:
            with limited_memory(self.options.call_limit()):
                job.run(self._by_dtype[job.contender.dtype])
        except Exception as error:
            status = "out_of_memory" if is_out_of_memory(error) else "failed"
            self._drop(job.contender, status, first_line(error))
            return False
        return True

    def _drop(self, contender: Contender, status: str, detail: str) -> None:
        self._jobs[:] = [job for job in self._jobs if job.contender is not contender]
        self._add_rows(contender, [], status, detail)

    def _finish(self) -> None:
        """Rows in the order of the contenders, with their shares of what the machine can do."""
        for contender in self.contenders:
            own = [job for job in self._jobs if job.contender is contender and job.samples]
            if own:
                self._add_rows(contender, own)
        rates = {name: rate.result() for name, rate in self._rates.items()}
        best = self.results.limits.setdefault("matrix_rate", {})
        for name, rate in rates.items():
            known = best.get(name, {"operations_per_second": 0.0})
            if rate["operations_per_second"] > known["operations_per_second"]:
                best[name] = {**rate, "case": self.case.name}
        self.results.cases[self.case.name]["matrix_rate"] = {
            name: rate["operations_per_second"] for name, rate in rates.items()
        }
        bandwidth = self.results.limits["memory_bandwidth"]
        for row in self._rows:
            if row.samples and row.executed_operations:
                rate = rates[row.dtype]["operations_per_second"]
                row.share_of_matrix_rate = row.executed_operations / row.median / rate
            if row.samples:
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
        extra_memory = self._memory[contender.label()].extra_bytes if jobs else None
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
