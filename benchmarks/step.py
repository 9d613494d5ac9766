"""``python -m benchmarks step``: what the choice of the loss costs a whole training step."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from benchmarks.arguments import positive_float, positive_int, without_folders
from benchmarks.contenders import NO_LOSS
from benchmarks.errors import UsageError
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.memory import MemoryUse, first_line, is_out_of_memory, run_probe
from benchmarks.results import Results, Row, keeping
from benchmarks.step_search import RANGES, find_largest
from benchmarks.step_table import PAPER, step_table
from benchmarks.steps import Steps
from benchmarks.timing import Clock

if TYPE_CHECKING:  # it needs the trainer's packages, and to say how a command is used needs none
    from benchmarks.training_step import TrainingStep

TABLE4 = [500, 1_000, 2_000, 6_400, 12_800, 19_200, 25_600]
#: Share of the time budget that the searches for the largest size keep.
SEARCH_SHARE = 1 / 2
USED_UP = "the time budget was used up"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        default="synthetic",
        help="training configuration, a shipped name or a file (default synthetic)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=["augment.crop_size=129"],
        metavar="KEY=VALUE",
        help="overrides of the configuration (default augment.crop_size=129)",
    )
    parser.add_argument(
        "--losses",
        nargs="+",
        default=[NO_LOSS, "ours", "official"],
        choices=[NO_LOSS, *IMPLEMENTATIONS],
        metavar="NAME",
        help=f"default: '{NO_LOSS}' ours official; also {', '.join(IMPLEMENTATIONS)}",
    )
    parser.add_argument(
        "--negatives",
        nargs="+",
        type=positive_int,
        default=TABLE4,
        help="numbers of negatives, 2 at least (default: those of the paper's Table 4)",
    )
    parser.add_argument(
        "--batch", type=positive_int, default=8, help="labelled and unlabelled images each"
    )
    parser.add_argument("--repeats", type=positive_int, default=5, help="timed steps each, at most")
    parser.add_argument(
        "--time-budget", type=positive_float, default=600.0, metavar="SECONDS", help="default 600"
    )
    parser.add_argument(
        "--memory-budget",
        type=positive_float,
        metavar="GIB",
        help="also find the largest number of negatives and the largest batch that fit into this; "
        f"for it {100 * SEARCH_SHARE:.0f}%% of the time budget is kept, shared by all searches",
    )


class StepRun:
    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        from benchmarks.training_step import check_comparable, step_config

        if min(arguments.negatives) < 2:
            raise UsageError(
                "--negatives must be 2 at least, one of each view, "
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
            end: ends the process. It is called when every row has its reason, if a step has not
                come back long after the deadline. None waits for it.
        """
        arguments = self.arguments
        searches = self._searches()
        total = 2 * len(arguments.losses) * len(arguments.negatives) + len(searches)

        def give_up(step: str, seconds: float) -> None:
            self.results.skip(step, f"not done after {seconds:.0f} s; the run was ended there")
            self._explain("timed_out", f"the run was ended: {step}")
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
        """A row for each that has none."""
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
        """Of what, and with which loss, the largest is looked for."""
        if not self.arguments.memory_budget:
            return []
        return [
            (what, loss)
            for what in RANGES
            for loss in self.arguments.losses
            if (what, loss) != ("negatives", NO_LOSS)  # there they only lie in the bank
        ]

    def _run_row(self, negatives: int, deadline: float) -> None:
        """All losses at one number of negatives, interleaved."""
        from benchmarks.training_step import TrainingStep

        case = f"negatives-{negatives}"
        steps: dict[str, TrainingStep] = {}
        rows: dict[str, Row] = {}
        seconds: dict[str, float] = {}  # that a step takes, about
        for i, loss in enumerate(self.arguments.losses):
            self.steps.begin(f"{case}: memory with {loss}")
            # Half for this, half for the step that is timed here.
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
        self.results.rows += rows.values()  # now: an interruption keeps the steps made so far
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
            if loss in first:  # slow steps are timed without a warm-up
                rows[loss].samples, rows[loss].warmed_up = [first[loss]], False
            else:
                rows[loss].status = "skipped"
                rows[loss].detail = f"{USED_UP}; a step takes about {seconds[loss]:.1f} s"
        self.steps.update(len(rows))

    def _time(self, step: TrainingStep, row: Row) -> float | None:
        """Seconds of one step; None if it died, which is said in its row."""
        clock = Clock(self.device)
        clock.mark()
        try:
            step.run()
        except Exception as error:  # a rival that dies is a row of the table
            row.status = "out_of_memory" if is_out_of_memory(error) else "failed"
            row.detail = first_line(error)
            return None
        clock.mark()
        return clock.intervals()[0]

    def _memory(
        self, loss: str, negatives: int, batch: int, timeout: float, budget: int = 0
    ) -> MemoryUse:
        """Peak of one step; beyond ``budget`` bytes, if there is one, it is out of memory."""
        if self.device.type == "cuda":
            use = self._memory_on_gpu(loss, negatives, batch)
        else:
            request = {
                "config": self.arguments.config,
                "overrides": self.arguments.overrides,
                "loss": loss,
                "negatives": negatives,
                "batch": batch,
                "seed": self.arguments.seed,
            }
            # The allocator counts what is asked for, the budget what is used of it.
            limit = 2 * budget if budget else None
            use = run_probe("benchmarks.step_probe", request, limit_bytes=limit, timeout=timeout)
        if use.status == "ok" and budget and use.extra_bytes > budget:
            return MemoryUse("out_of_memory", use.extra_bytes, detail="beyond the budget")
        return use

    def _memory_on_gpu(self, loss: str, negatives: int, batch: int) -> MemoryUse:
        from benchmarks.training_step import TrainingStep

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

    def _search(self, loss: str, what: str, seconds: float) -> dict:
        """The largest size whose step stays within the memory budget."""
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
            **asdict(found),
            "seconds": seconds,
            "budget_bytes": budget,
        }


def run(arguments: argparse.Namespace) -> int:
    names = ("losses", "negatives", "batch", "repeats", "time_budget", "seed")
    settings = {
        "config": without_folders(arguments.config),
        "overrides": [without_folders(override) for override in arguments.overrides],
        **{name: getattr(arguments, name) for name in names},
        "memory_budget_gib": arguments.memory_budget,
    }
    device = torch.device(arguments.device)
    results = Results.start("step", settings, device, arguments.command_line)
    results.extra["paper"] = PAPER
    measurement = StepRun(arguments, results)
    with keeping(results, arguments.output, step_table) as kept:
        measurement.run(kept.end_process if arguments.own_process else None)
    return 0
