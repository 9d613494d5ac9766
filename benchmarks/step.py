"""``python -m benchmarks step``: what the choice of the loss costs a whole training step."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import table
from benchmarks.foreign_load import ForeignLoad
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.memory import MemoryUse, first_line, is_out_of_memory, run_probe
from benchmarks.results import Results, Row
from benchmarks.timing import Clock

TABLE4 = [500, 1_000, 2_000, 6_400, 12_800, 19_200, 25_600]
#: Section 4.3 and Table 4 of the paper, on the authors' GPUs: facts about the paper, not measured.
PAPER = {
    "negatives": [500, 19_200],
    "seconds_per_iteration": [0.96, 1.18],
    "memory_growth": "about 800M on each GPU",
}
#: The search for the largest size goes up in these steps and stops at the first that does not fit.
SEARCH_NEGATIVES = [25_600 * 2**i for i in range(8)]
SEARCH_BATCH = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from benchmarks.training_step import NO_LOSS

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
        type=int,
        default=TABLE4,
        help="numbers of negatives (default: those of the paper's Table 4)",
    )
    parser.add_argument("--batch", type=int, default=8, help="labelled and unlabelled images each")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps each, at most")
    parser.add_argument(
        "--time-budget", type=float, default=600.0, metavar="SECONDS", help="default 600"
    )
    parser.add_argument(
        "--memory-budget",
        type=float,
        metavar="GIB",
        help="also find the largest number of negatives and the largest batch that fit into this",
    )


class StepRun:
    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        from benchmarks.training_step import step_config

        self.arguments = arguments
        self.results = results
        self.device = torch.device(arguments.device)
        self.config = step_config(arguments.config, arguments.overrides)
        self.deadline = time.monotonic() + arguments.time_budget

    def run(self) -> None:
        arguments = self.arguments
        searches = 2 * len(arguments.losses) if arguments.memory_budget else 0
        total = 2 * len(arguments.losses) * len(arguments.negatives) + searches
        with tqdm(total=total, unit="row", disable=None, dynamic_ncols=True) as self.bar:
            # A search must not starve: it keeps a third of the time.
            search_time = arguments.time_budget / 3 if searches else 0.0
            for i, negatives in enumerate(arguments.negatives):
                left = self.deadline - search_time - time.monotonic()
                share = max(left, 1.0) / (len(arguments.negatives) - i)
                self._run_row(negatives, time.monotonic() + share)
            if searches:
                wanted = [
                    (what, loss) for what in ("negatives", "batch") for loss in arguments.losses
                ]
                self.results.extra["largest"] = []
                for i, (what, loss) in enumerate(wanted):
                    left = max(self.deadline - time.monotonic(), 1.0)
                    found = self._search(loss, what, time.monotonic() + left / (searches - i))
                    self.results.extra["largest"].append(found)

    def _run_row(self, negatives: int, deadline: float) -> None:
        """All losses at one number of negatives, interleaved."""
        from benchmarks.training_step import TrainingStep

        case = f"negatives-{negatives}"
        steps: dict[str, TrainingStep] = {}
        rows: dict[str, Row] = {}
        for loss in self.arguments.losses:
            self.bar.set_description(f"{case}: memory with {loss}")
            use = self._memory(loss, negatives, self.arguments.batch, self.deadline)
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
        self.results.rows += rows.values()
        self.bar.update(len(rows))

    def _memory(
        self, loss: str, negatives: int, batch: int, deadline: float, limit: int = 0
    ) -> MemoryUse:
        if self.device.type == "cuda":
            return self._memory_on_gpu(loss, negatives, batch, limit)
        return run_probe(
            "benchmarks.step_probe",
            {
                "config": self.arguments.config,
                "overrides": self.arguments.overrides,
                "loss": loss,
                "negatives": negatives,
                "batch": batch,
                "seed": self.arguments.seed,
            },
            limit_bytes=limit or None,
            timeout=max(deadline - time.monotonic(), 60.0),
        )

    def _memory_on_gpu(self, loss: str, negatives: int, batch: int, limit: int) -> MemoryUse:
        from benchmarks.training_step import TrainingStep

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            step = TrainingStep(
                self.config, loss, negatives, batch, self.device, self.arguments.seed
            )
            for _ in range(2):
                step.run()
            torch.cuda.synchronize(self.device)
        except Exception as error:
            status = "out_of_memory" if is_out_of_memory(error) else "failed"
            return MemoryUse(status, detail=first_line(error))
        peak = torch.cuda.max_memory_allocated(self.device) - before
        if limit and peak > limit:
            return MemoryUse("out_of_memory", peak, detail="beyond the budget")
        return MemoryUse("ok", peak)

    def _search(self, loss: str, what: str, deadline: float) -> dict:
        """The largest size whose step stays within the memory budget."""
        budget = int(self.arguments.memory_budget * 2**30)
        sizes = SEARCH_NEGATIVES if what == "negatives" else SEARCH_BATCH
        largest, stopped_by = None, "end of the search"
        probe: Callable[[int], MemoryUse] = (
            (lambda size: self._memory(loss, size, self.arguments.batch, deadline, budget))
            if what == "negatives"
            else (
                lambda size: self._memory(
                    loss, max(self.arguments.negatives), size, deadline, budget
                )
            )
        )
        for size in sizes:
            self.bar.set_description(f"largest {what} with {loss}: {size}")
            if time.monotonic() > deadline:
                stopped_by = "time budget"
                break
            use = probe(size)
            if use.status == "timed_out":
                stopped_by = "time budget"
                break
            if use.status == "failed":
                stopped_by = use.detail
                break
            if use.status == "out_of_memory" or use.extra_bytes > budget:
                stopped_by = "memory budget"
                break
            largest = size
        self.bar.update()
        return {
            "loss": loss,
            "what": what,
            "largest": largest,
            "stopped_by": stopped_by,
            "budget_bytes": budget,
        }


def step_table(results: Results) -> str:
    """Rows of Table 4, then the sizes that fit, then the paper's own figures."""
    header = ["negatives", "loss", "step", "p20-p80", "steps", "vs no loss", "memory", "more"]
    lines, notes = [], []
    for row in results.rows:
        negatives = f"{results.cases.get(row.case, {}).get('negatives', row.case)}"
        if row.status != "ok":
            lines.append([negatives, row.implementation, row.status, *["-"] * (len(header) - 3)])
            notes.append(f"{row.case}, {row.implementation}: {row.detail}")
            continue
        floor = results.find(row.case, "no loss", row.dtype, row.phase)
        slower = more = None
        if floor is not None and floor.samples and row is not floor:
            slower = row.median / floor.median - 1
            more = row.extra_memory - floor.extra_memory
        lines.append(
            [
                negatives,
                row.implementation,
                table.seconds(row.median),
                f"{table.seconds(row.p20)}-{table.seconds(row.p80)}",
                f"{len(row.samples)}",
                "-" if slower is None else f"{100 * slower:+.1f}%",
                table.size(row.extra_memory),
                "-" if more is None else table.size(more),
            ]
        )
    parts = [table.render(header, lines, left=2)]
    growth = _growth(results)
    if growth:
        parts.append(growth)
    largest = results.extra.get("largest", [])
    if largest:
        rows = [
            [item["what"], item["loss"], f"{item['largest'] or '-'}", item["stopped_by"]]
            for item in largest
        ]
        budget = table.size(largest[0]["budget_bytes"])
        parts.append(
            f"largest that fits into {budget}:\n"
            + table.render(["what", "loss", "largest", "stopped by"], rows, left=2)
        )
    return "\n\n".join([*parts, *notes, *filter(None, [results.warning()])])


def _growth(results: Results) -> str:
    """From the fewest negatives to 19.2k: measured, beside what the paper says of itself."""
    low, high = (f"negatives-{n}" for n in PAPER["negatives"])
    lines = []
    for loss in dict.fromkeys(row.implementation for row in results.rows):
        rows = [results.find(case, loss, "float32", "step") for case in (low, high)]
        if all(row is not None and row.samples for row in rows):
            seconds = rows[1].median / rows[0].median - 1
            memory = (rows[1].extra_memory - rows[0].extra_memory) / 1e6
            lines.append([f"measured here, {loss}", f"{memory:+.0f} MB", f"{100 * seconds:+.1f}%"])
    if not lines:
        return ""
    first, second = PAPER["seconds_per_iteration"]
    paper = f"{first} s to {second} s ({100 * (second / first - 1):+.0f}%)"
    lines.append(["the paper's own, on its GPUs", PAPER["memory_growth"], paper])
    return "from 500 to 19,200 negatives:\n" + table.render(["", "memory", "time"], lines)


def run(arguments: argparse.Namespace) -> int:
    settings = {
        name: getattr(arguments, name)
        for name in ("config", "overrides", "losses", "negatives", "batch", "repeats", "seed")
    }
    results = Results.start("step", settings, torch.device(arguments.device))
    results.extra["paper"] = PAPER
    load = ForeignLoad()
    StepRun(arguments, results).run()
    results.machine["foreign_load"] = load.share()
    print(step_table(results))
    if arguments.output:
        results.save(Path(arguments.output))
        print(f"\nwritten: {arguments.output}")
    return 0
