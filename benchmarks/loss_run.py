"""Measures contenders on one case after another: checked, interleaved, within a time budget."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from benchmarks.cases import Case, Inputs, make_inputs
from benchmarks.contenders import TYPES, Contender, float32_products
from benchmarks.correctness import CHECK_CASE, Check, check
from benchmarks.machine_limits import MatrixRate, memory_bandwidth
from benchmarks.memory import (
    MemoryUse,
    first_line,
    is_out_of_memory,
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


def _sample(rates: dict[str, MatrixRate]) -> None:
    for name, rate in rates.items():
        with float32_products(TYPES[name][1]):
            rate.sample()


class LossRun:
    """State that outlives a case: the contenders' rates, the machine's limits, the bar."""

    def __init__(
        self,
        results: Results,
        contenders: list[Contender],
        *,
        device: torch.device,
        seed: int,
        repeats: int,
        time_budget: float,
        memory: bool = True,
        memory_limit: int | None = None,
    ) -> None:
        self.results = results
        self.contenders = contenders
        self.device = device
        self.seed = seed
        self.repeats = repeats
        self.deadline = time.monotonic() + time_budget
        self.memory = memory
        self.memory_limit = memory_limit

    def run(self, cases: list[Case]) -> None:
        steps = len(self.contenders) * (1 + 2 * len(cases))
        with tqdm(total=steps, unit="step", disable=None, dynamic_ncols=True) as self.bar:
            self._check_all()
            self.bar.set_description("memory bandwidth")
            bandwidth = memory_bandwidth(self.device)
            self.results.limits["memory_bandwidth"] = bandwidth
            for i, case in enumerate(cases):
                left = max(self.deadline - time.monotonic(), 1.0)
                self._run_case(case, time.monotonic() + left / (len(cases) - i))
        self._derive(bandwidth)
        order = [contender.label() for contender in self.contenders]
        names = [case.name for case in cases]
        self.results.rows.sort(
            key=lambda row: (
                names.index(row.case),
                order.index(f"{row.implementation} {row.dtype}"),
                PHASES.index(row.phase),
            )
        )

    def _check_all(self) -> None:
        """Equal loss and gradient first, and a first idea of everyone's speed."""
        inputs = make_inputs(CHECK_CASE, self.seed)
        workload = Workload.of(inputs)
        for contender in self.contenders:
            self.bar.set_description(f"checking {contender.label()}")
            with float32_products(contender.precision):
                self._check(contender, inputs, workload)
            self.bar.update()

    def _check(self, contender: Contender, inputs: Inputs, workload: Workload) -> None:
        implementation = contender.implementation
        contender.broken = implementation.unsupported(self.device, contender.dtype) or ""
        if contender.broken:
            return
        try:
            outcome: Check = check(implementation, str(self.device), contender.dtype, self.seed)
        except Exception as error:
            contender.broken = first_line(error)
            return
        self.results.checks.append({**outcome.to_json(), "dtype": contender.dtype_name})
        if not outcome.passed:
            contender.broken = (
                f"wrong result: relative error {outcome.loss_error:.1e} of the loss, "
                f"{outcome.gradient_error:.1e} of the gradient"
            )
            return
        ready = inputs.to(self.device, contender.dtype)
        seconds = time_training(implementation.loss, ready)["both"]
        operations = implementation.executed_operations(workload, "both")
        contender.seconds_per_operation = seconds / operations

    def _run_case(self, case: Case, deadline: float) -> None:
        inputs = make_inputs(case, self.seed)
        workload = Workload.of(inputs)
        self.results.cases[case.name] = {**case.to_json(), "workload": vars(workload)}
        by_dtype: dict[torch.dtype, Inputs] = {}
        rates: dict[str, MatrixRate] = {}
        jobs: list[_Job] = []
        memory: dict[str, MemoryUse] = {}
        reserved = 0.0  # seconds, for the timed rounds of those before
        # The fast ones first: a slow rival gets what they leave.
        for contender in sorted(self.contenders, key=lambda one: one.predicted(workload)):
            calls = ROUND_CALLS + (MEMORY_CALLS if self.memory else 0.0)
            refused = self._refusal(contender, workload, deadline - reserved, calls)
            if refused is None:
                if contender.dtype not in by_dtype:
                    by_dtype[contender.dtype] = inputs.to(self.device, contender.dtype)
                if contender.dtype_name not in rates:
                    rate = MatrixRate(self.device, contender.dtype, case.C)
                    rates[contender.dtype_name] = rate
                self.bar.set_description(f"{case.name}: memory of {contender.label()}")
                use = self._measure_memory(contender, case, by_dtype[contender.dtype], deadline)
                memory[contender.label()] = use
                if use.status == "ok":
                    if use.seconds and not contender.implementation.compiles:
                        operations = contender.implementation.executed_operations(workload, "both")
                        contender.predict_from(use.seconds, operations)
                    refused = self._refusal(contender, workload, deadline - reserved, ROUND_CALLS)
                else:
                    refused = use.status, use.detail
            self.bar.update()
            if refused is not None:
                status, detail = refused
                self._add_rows(case, contender, workload, [], status, detail)
                self.bar.update()
                continue
            jobs += [_Job(contender, training) for training in (True, False)]
            reserved += SLOW_REPEATS * ROUND_CALLS * contender.predicted(workload)

        self._first_round(case, jobs, by_dtype, workload, deadline)
        self._later_rounds(case, jobs, by_dtype, rates, deadline)
        _sample(rates)
        for contender in dict.fromkeys(id(job.contender) for job in jobs):
            own = [job for job in jobs if id(job.contender) == contender]
            use = memory[own[0].contender.label()]
            self._add_rows(case, own[0].contender, workload, own, "ok", "", use.extra_bytes)
        self.results.limits.setdefault("matrix_rate", {}).update(
            {name: rate.result() for name, rate in rates.items()}
        )
        self.results.cases[case.name]["matrix_rate"] = {
            name: rate.result()["operations_per_second"] for name, rate in rates.items()
        }

    def _refusal(
        self, contender: Contender, workload: Workload, deadline: float, calls: float
    ) -> tuple[str, str] | None:
        """``(status, reason)`` if this contender is not to be run so many times, or None."""
        if contender.broken:
            wrong = contender.broken.startswith("wrong result")
            return ("failed" if wrong else "skipped"), contender.broken
        predicted = contender.predicted(workload)
        left = deadline - time.monotonic()
        # Before a first run of real size the prediction is rough, mostly too high.
        if calls * predicted > max(left, 1.0) * (1 if contender.measured else 5):
            return (
                "skipped",
                f"would take about {predicted:.0f} s a run, "
                f"and {max(left, 0):.0f} s of the time budget are left",
            )
        return None

    def _measure_memory(
        self, contender: Contender, case: Case, inputs: Inputs, deadline: float
    ) -> MemoryUse:
        if not self.memory:
            return MemoryUse("ok")
        with float32_products(contender.precision):
            if self.device.type == "cuda":
                return measure_on_gpu(contender.implementation, inputs)
            return measure_in_child(
                contender.name,
                contender.dtype,
                case,
                self.seed,
                limit_bytes=self.memory_limit,
                timeout=max(deadline - time.monotonic(), 60.0),
            )

    def _first_round(
        self,
        case: Case,
        jobs: list[_Job],
        by_dtype: dict[torch.dtype, Inputs],
        workload: Workload,
        deadline: float,
    ) -> None:
        for job in list(jobs):
            if job not in jobs:
                continue  # its contender failed meanwhile
            contender = job.contender
            self.bar.set_description(f"{case.name}: {contender.label()}")
            implementation = contender.implementation
            expected = contender.predicted(workload)
            if expected > WARM_UP_BELOW and time.monotonic() > deadline:
                jobs.remove(job)
                if job.training:
                    detail = f"the time budget was used up; a run takes about {expected:.0f} s"
                    jobs[:] = [other for other in jobs if other.contender is not contender]
                    self._add_rows(case, contender, workload, [], "skipped", detail)
                self.bar.update()
                continue
            job.warmed_up = implementation.compiles or expected < WARM_UP_BELOW
            try:
                if job.warmed_up:
                    job.run(by_dtype[contender.dtype])
                    job.samples.clear()
                    job.spent = 0.0
                job.run(by_dtype[contender.dtype])
            except Exception as error:  # a rival that dies is a row of the table
                status = "out_of_memory" if is_out_of_memory(error) else "failed"
                jobs[:] = [other for other in jobs if other.contender is not contender]
                self._add_rows(case, contender, workload, [], status, first_line(error))
            if not job.training:
                self.bar.update()

    def _later_rounds(
        self,
        case: Case,
        jobs: list[_Job],
        by_dtype: dict[torch.dtype, Inputs],
        rates: dict[str, MatrixRate],
        deadline: float,
    ) -> None:
        """Rounds over all jobs in changing order, so that a busy moment hits everyone."""
        order = random.Random(self.seed)
        share = max(deadline - time.monotonic(), 0.0) / max(len(jobs), 1)
        self.bar.set_description(f"{case.name}: interleaved runs")

        def allowed(job: _Job) -> bool:
            left = deadline - time.monotonic()
            return (
                len(job.samples) < self.repeats
                and job.expected < left
                and job.spent + job.expected <= share
            )

        while ready := [job for job in jobs if allowed(job)]:
            _sample(rates)
            for job in order.sample(ready, len(ready)):
                if allowed(job):
                    job.run(by_dtype[job.contender.dtype])
        while slow := [
            job
            for job in jobs
            if len(job.samples) < min(SLOW_REPEATS, self.repeats)
            and job.expected < deadline - time.monotonic()
        ]:
            job = min(slow, key=lambda job: len(job.samples))
            job.run(by_dtype[job.contender.dtype])

    def _add_rows(
        self,
        case: Case,
        contender: Contender,
        workload: Workload,
        jobs: list[_Job],
        status: str,
        detail: str,
        extra_memory: int | None = None,
    ) -> None:
        implementation = contender.implementation
        samples: dict[str, list[float]] = {}
        for job in jobs:
            for sample in job.samples:
                for phase, seconds in sample.items():
                    samples.setdefault(phase, []).append(seconds)
            if job.training:
                operations = implementation.executed_operations(workload, "both")
                contender.predict_from(percentile(samples["both"], 0.5), operations)
        for phase in [phase for phase in PHASES if phase in samples] or ["both"]:
            self.results.rows.append(
                Row(
                    case=case.name,
                    implementation=contender.name,
                    dtype=contender.dtype_name,
                    phase=phase,
                    status=status,
                    detail=detail,
                    samples=samples.get(phase, []),
                    warmed_up=all(job.warmed_up for job in jobs),
                    extra_memory=extra_memory if phase == "both" else None,
                    executed_operations=implementation.executed_operations(workload, phase),
                    nominal_operations=workload.nominal_operations(phase),
                    compulsory_bytes=workload.compulsory_bytes(phase, contender.dtype.itemsize),
                )
            )

    def _derive(self, bandwidth: float) -> None:
        """Shares of what the machine can do, from rates of the same case's rounds."""
        for row in self.results.rows:
            if not row.samples:
                continue
            rate = self.results.cases[row.case]["matrix_rate"][row.dtype]
            if row.executed_operations:
                row.share_of_matrix_rate = row.executed_operations / row.median / rate
            row.share_of_bandwidth = row.compulsory_bytes / row.median / bandwidth
