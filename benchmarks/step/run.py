"""Measures whole training steps with several losses, interleaved, within a time budget."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch

from benchmarks.errors import UsageError
from benchmarks.implementations.contenders import NO_LOSS
from benchmarks.measure.memory import MemoryUse, first_line, run_probe
from benchmarks.measure.records import Largest
from benchmarks.measure.results import Results, Row
from benchmarks.measure.steps import Steps
from benchmarks.measure.timing import Clock
from benchmarks.step.probe import StepRequest
from benchmarks.step.search import RANGES, SEARCH_SHARE, find_largest
from benchmarks.step.training_step import TrainingStep, check_comparable, step_config
from cac_ext.train.runtime.memory import is_out_of_memory

USED_UP = "the time budget was used up"


class StepRun:
    """One run of the command: rows for each number of negatives, then searches."""

    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        if min(arguments.negatives) < 2:
            raise UsageError(
                "--negatives must be at least 2, one of each view, "
                f"but got {min(arguments.negatives)}"
            )
        self.arguments = arguments
        self.results = results
        self.device = torch.device(arguments.device)
        self.config = step_config(arguments.config, arguments.overrides)
        check_comparable(self.config, arguments.losses)
        self.deadline = arguments.started + arguments.time_budget

    def run(self, end: Callable[[], object] | None = None) -> None:
        """Measure all rows, then search for the largest sizes.

        Args:
            end: ends the process. If a step has not returned long after the deadline, it is called
                as soon as every row has its reason. None waits for the step.
        """
        arguments = self.arguments
        searches = self._searches()
        total = 2 * len(arguments.losses) * len(arguments.negatives) + len(searches)

        def give_up(step: str, seconds: float) -> None:
            self.results.skip(step, f"not done after {seconds:.0f} s; the run was ended there")
            self._explain("timed_out", f"the run was ended: {step}")
            if end is not None:
                end()

        with Steps(total, self.deadline, end and give_up, unit="row") as self.steps:
            search_time = SEARCH_SHARE * arguments.time_budget if searches else 0.0
            for i, negatives in enumerate(arguments.negatives):
                left = self.deadline - search_time - time.monotonic()
                share = left / (len(arguments.negatives) - i)
                self._run_row(negatives, time.monotonic() + share)
            for i, (what, loss) in enumerate(searches):
                left = self.deadline - time.monotonic()
                found = self._search(loss, what, left / (len(searches) - i))
                self.results.extra.setdefault("largest", []).append(found)

    def _explain(self, status: str, detail: str) -> None:
        """Give a status and its reason to every row without figures."""
        for negatives in self.arguments.negatives:
            case = f"negatives-{negatives}"
            for loss in self.arguments.losses:
                row = self.results.find(case, loss, "float32", "step")
                if row is None:
                    row = Row(case, loss, "float32", "step")
                    self.results.rows.append(row)
                if row.status == "ok" and not row.samples:
                    row.status, row.detail = status, detail

    def _searches(self) -> list[tuple[str, str]]:
        """``(what, loss)`` of every search: the size that grows, and the loss."""
        if not self.arguments.memory_budget:
            return []
        return [
            (what, loss)
            for what in RANGES
            for loss in self.arguments.losses
            if (what, loss) != ("negatives", NO_LOSS)  # there the bank only stores them
        ]

    def _run_row(self, negatives: int, deadline: float) -> None:
        """All losses at one number of negatives, interleaved."""
        case = f"negatives-{negatives}"
        steps: dict[str, TrainingStep] = {}
        rows: dict[str, Row] = {}
        seconds: dict[str, float] = {}  # of a step, approximately
        for i, loss in enumerate(self.arguments.losses):
            self.steps.begin(f"{case}: memory with {loss}")
            # Half of the time is for memory, half for the timed steps.
            left = (deadline - time.monotonic()) / (len(self.arguments.losses) - i) / 2
            use = MemoryUse("skipped", detail=USED_UP)
            if left > 0:
                use = self._memory(loss, negatives, self.arguments.batch, left)
            row = Row(case, loss, "float32", "step", use.status, use.detail)
            row.extra_memory = use.extra_bytes
            rows[loss] = row
            self.steps.update()
            if use.status == "ok":
                seconds[loss] = use.seconds or 0.0
                steps[loss] = TrainingStep(
                    self.config,
                    loss,
                    negatives,
                    self.arguments.batch,
                    self.device,
                    self.arguments.seed,
                )
                self.results.cases[case] = {
                    "negatives": negatives,
                    "anchors": steps[loss].anchors,
                    "batch": self.arguments.batch,
                }
        self.results.rows += rows.values()  # before timing: an interruption keeps the steps so far
        order = random.Random(self.arguments.seed)
        first: dict[str, float] = {}
        for repeat in range(self.arguments.repeats + 1):  # the first round warms up
            for loss in order.sample(list(steps), len(steps)):
                if time.monotonic() + seconds[loss] > deadline:
                    continue
                self.steps.begin(f"{case}: {loss}")
                taken = self._time(steps[loss], rows[loss])
                if taken is None:
                    del steps[loss]
                    continue
                seconds[loss] = taken
                first.setdefault(loss, taken)
                if repeat:
                    rows[loss].samples.append(taken)
        for loss in steps:
            if rows[loss].samples:
                continue
            if loss in first:  # a slow step is timed without a warm-up
                rows[loss].samples, rows[loss].warmed_up = [first[loss]], False
            else:
                rows[loss].status = "skipped"
                rows[loss].detail = f"{USED_UP}; a step takes about {seconds[loss]:.1f} s"
        self.steps.update(len(rows))

    def _time(self, step: TrainingStep, row: Row) -> float | None:
        """Seconds of one step; None if it failed, with the reason in its row."""
        clock = Clock(self.device)
        clock.mark()
        try:
            step.run()
        except Exception as error:  # a rival that fails is a row of the table
            row.status = "out_of_memory" if is_out_of_memory(error) else "failed"
            row.detail = first_line(error)
            return None
        clock.mark()
        return clock.intervals()[0]

    def _memory(
        self, loss: str, negatives: int, batch: int, timeout: float, budget: int = 0
    ) -> MemoryUse:
        """Peak of one step; more than ``budget`` bytes (0: any number) are out of memory."""
        if self.device.type == "cuda":
            use = self._memory_on_gpu(loss, negatives, batch)
        else:
            request: StepRequest = {
                "config": self.arguments.config,
                "overrides": self.arguments.overrides,
                "loss": loss,
                "negatives": negatives,
                "batch": batch,
                "seed": self.arguments.seed,
            }
            # The allocator limits requested memory, the budget used memory.
            limit = 2 * budget if budget else None
            use = run_probe("benchmarks.step.probe", request, limit_bytes=limit, timeout=timeout)
        if use.status == "ok" and budget and (use.extra_bytes or 0) > budget:
            return MemoryUse("out_of_memory", use.extra_bytes, detail="beyond the budget")
        return use

    def _memory_on_gpu(self, loss: str, negatives: int, batch: int) -> MemoryUse:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            step = TrainingStep(
                self.config, loss, negatives, batch, self.device, self.arguments.seed
            )
            step.warm_up()
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            step.run()
            torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
        except Exception as error:
            status = "out_of_memory" if is_out_of_memory(error) else "failed"
            return MemoryUse(status, detail=first_line(error))
        extra = torch.cuda.max_memory_allocated(self.device) - before
        return MemoryUse("ok", extra, seconds)

    def _search(self, loss: str, what: str, seconds: float) -> Largest:
        """The largest size with which a step stays within the memory budget."""
        budget = int(self.arguments.memory_budget * 2**30)
        deadline = time.monotonic() + seconds
        usual = {"negatives": max(self.arguments.negatives), "batch": self.arguments.batch}

        def probe(size: int) -> MemoryUse:
            self.steps.begin(f"largest {what} with {loss}: {size}")
            sizes = {**usual, what: size}
            timeout = deadline - time.monotonic()
            return self._memory(loss, sizes["negatives"], sizes["batch"], timeout, budget)

        found = find_largest(probe, *RANGES[what], deadline)
        self.steps.update()
        return {
            "loss": loss,
            "what": what,
            "largest": found.largest,
            "too_large": found.too_large,
            "stopped_by": found.stopped_by,
            "seconds": seconds,
            "budget_bytes": budget,
        }
