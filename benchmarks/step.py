"""``python -m benchmarks step``: what the choice of the loss costs a whole training step."""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import asdict

import torch
from tqdm import tqdm

from benchmarks.arguments import positive_float, positive_int, without_folders
from benchmarks.contenders import NO_LOSS
from benchmarks.errors import UsageError
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.memory import MemoryUse, first_line, is_out_of_memory, run_probe
from benchmarks.results import Results, Row, keeping
from benchmarks.step_search import RANGES, find_largest
from benchmarks.step_table import PAPER, step_table
from benchmarks.timing import Clock

TABLE4 = [500, 1_000, 2_000, 6_400, 12_800, 19_200, 25_600]
#: Share of the time budget that the searches for the largest size keep.
SEARCH_SHARE = 1 / 2
#: What measuring a row's memory may take even if its time is over: most of it is starting torch.
LEAST_SECONDS = 30.0


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
        self.deadline = time.monotonic() + arguments.time_budget

    def run(self) -> None:
        arguments = self.arguments
        searches = self._searches()
        total = 2 * len(arguments.losses) * len(arguments.negatives) + len(searches)
        with tqdm(total=total, unit="row", disable=None, dynamic_ncols=True) as self.bar:
            search_time = SEARCH_SHARE * arguments.time_budget if searches else 0.0
            for i, negatives in enumerate(arguments.negatives):
                left = self.deadline - search_time - time.monotonic()
                share = max(left, 1.0) / (len(arguments.negatives) - i)
                self._run_row(negatives, time.monotonic() + share)
            for i, (what, loss) in enumerate(searches):
                left = max(self.deadline - time.monotonic(), 1.0)
                found = self._search(loss, what, left / (len(searches) - i))
                self.results.extra.setdefault("largest", []).append(found)

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
        for loss in self.arguments.losses:
            self.bar.set_description(f"{case}: memory with {loss}")
            timeout = max(deadline - time.monotonic(), LEAST_SECONDS)
            use = self._memory(loss, negatives, self.arguments.batch, timeout)
            row = Row(case, loss, "float32", "step", use.status, use.detail)
            row.extra_memory = use.extra_bytes
            rows[loss] = row
            self.bar.update()
            if use.status == "ok":
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
        self.bar.set_description(f"{case}: interleaved steps")
        for repeat in range(self.arguments.repeats + 1):  # the first round warms up
            for loss in order.sample(list(steps), len(steps)):
                if repeat > 1 and time.monotonic() > deadline:
                    break
                clock = Clock(self.device)
                clock.mark()
                try:
                    steps[loss].run()
                except Exception as error:  # a rival that dies is a row of the table
                    rows[loss].status = "out_of_memory" if is_out_of_memory(error) else "failed"
                    rows[loss].detail = first_line(error)
                    del steps[loss]
                    continue
                clock.mark()
                if repeat:
                    rows[loss].samples += clock.intervals()
        self.bar.update(len(rows))

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
            step.run()
            torch.cuda.synchronize(self.device)
        except Exception as error:
            status = "out_of_memory" if is_out_of_memory(error) else "failed"
            return MemoryUse(status, detail=first_line(error))
        return MemoryUse("ok", torch.cuda.max_memory_allocated(self.device) - before)

    def _search(self, loss: str, what: str, seconds: float) -> dict:
        """The largest size whose step stays within the memory budget."""
        budget = int(self.arguments.memory_budget * 2**30)
        deadline = time.monotonic() + seconds
        usual = {"negatives": max(self.arguments.negatives), "batch": self.arguments.batch}

        def probe(size: int) -> MemoryUse:
            self.bar.set_description(f"largest {what} with {loss}: {size}")
            sizes = {**usual, what: size}
            timeout = max(deadline - time.monotonic(), 1.0)
            return self._memory(loss, sizes["negatives"], sizes["batch"], timeout, budget)

        found = find_largest(probe, *RANGES[what], deadline)
        self.bar.update()
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
    with keeping(results, arguments.output, step_table):
        measurement.run()
    return 0
