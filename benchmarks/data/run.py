"""Measures how fast each pipeline loads batches, within a time budget."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch

from benchmarks.data.pictures import (
    CASES,
    TINY,
    USUAL_SCALE,
    Files,
    PictureCase,
    write_files,
)
from benchmarks.data.pipelines import PIPELINES, Work, augment_config, load
from benchmarks.data.probe import SampleRequest
from benchmarks.data.table import phase
from benchmarks.errors import UsageError
from benchmarks.measure.machine import usable_cores
from benchmarks.measure.memory import MemoryUse, first_line, run_probe
from benchmarks.measure.results import Results, Row
from benchmarks.measure.steps import Steps

USED_UP = "the time budget was used up"
QUICK = "tiny"
_TIMED = 2  # batches a worker in each pass, after as many as there are workers
_DTYPE = "float32"  # of the batches


class DataRun:
    """One run of the command: for each picture size memory, then times of every task.

    A pass starts a loader, waits until it is warm and times a few batches. All pipelines make a
    pass in changing order, then another one while time is left. A sample is the seconds of an image
    in one pass.
    """

    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        if torch.device(arguments.device).type != "cpu":
            raise UsageError(f"data is loaded by the CPU: leave out --device {arguments.device}")
        self.arguments = arguments
        self.results = results
        self.cases = {QUICK: TINY} if arguments.quick else {n: CASES[n] for n in arguments.cases}
        self.workers = sorted(set(arguments.workers))
        self.deadline = arguments.started + arguments.time_budget
        self.order = random.Random(arguments.seed)

    def run(self, end: Callable[[], object] | None = None) -> None:
        """Measure all rows.

        Args:
            end: ends the process. It is called if a step has not returned long after the deadline.
                None waits for the step.
        """
        tasks = PIPELINES["ours"].tasks
        groups = len(self.cases) * (1 + len(tasks) * len(self.workers))

        def give_up(step: str, seconds: float) -> None:
            self.results.skip(step, f"not done after {seconds:.0f} s; the run was ended there")
            if end is not None:
                end()

        with (
            tempfile.TemporaryDirectory() as folder,
            Steps(groups, self.deadline, end and give_up, unit="group") as self.steps,
        ):
            for name, case in self.cases.items():
                self.steps.begin(f"{name}: drawing a picture")
                files = write_files(case, Path(folder), self.arguments.seed)
                self.results.cases[name] = {
                    "width": case.width,
                    "height": case.height,
                    "crop_size": case.crop_size,
                    "base_size": case.base_size,
                    "batch": case.batch,
                    "scale": USUAL_SCALE,
                    "file_bytes": files.image.stat().st_size,
                }
                memory = self._memory(name, case, files)
                groups -= 1
                #: Seconds of a sample, by pipeline and task; of the other tasks an upper guess.
                seconds = {
                    (pipeline, task): (use.seconds or 0.0) * (1 if task == "labelled" else 3)
                    for (pipeline, use), task in product(memory.items(), tasks)
                }
                for task, workers in product(tasks, self.workers):
                    work = Work(
                        files,
                        task,
                        augment_config(case, USUAL_SCALE),
                        case.batch,
                        self.arguments.seed,
                    )
                    rows = self._rows(name, task, workers)
                    if task == "labelled" and workers == self.workers[0]:
                        for pipeline, row in rows.items():
                            row.extra_memory = memory[pipeline].extra_bytes
                    self._time(rows, work, workers, seconds, self._share(groups))
                    groups -= 1
                    self.steps.update()

    def _share(self, groups: int) -> float:
        """When one of so many groups that are left should end."""
        now = time.monotonic()
        return now + (self.deadline - now) / groups

    def _rows(self, name: str, task: str, workers: int) -> dict[str, Row]:
        """New rows, by pipeline."""
        rows = {
            pipeline: Row(name, pipeline, _DTYPE, phase(task, workers))
            for pipeline in self.arguments.pipelines
            if task in PIPELINES[pipeline].tasks
        }
        self.results.rows += rows.values()
        return rows

    def _memory(self, name: str, case: PictureCase, files: Files) -> dict[str, MemoryUse]:
        """Peak of one labelled sample at the largest scale, by pipeline, each in a child."""
        found = {}
        for pipeline in self.arguments.pipelines:
            self.steps.begin(f"{name}: memory of {pipeline}")
            request: SampleRequest = {
                "pipeline": pipeline,
                "task": "labelled",
                "case": asdict(case),
                "image": str(files.image),
                "mask": str(files.mask),
                "seed": self.arguments.seed,
            }
            left = self.deadline - time.monotonic()  # most of it is for the times
            use = MemoryUse("skipped", detail=USED_UP)
            if left > 0:
                use = run_probe("benchmarks.data.probe", request, timeout=left / 8)
            if use.status != "ok":
                self.results.skip(f"{name}: memory of {pipeline}", use.detail)
            found[pipeline] = use
        self.steps.update()
        return found

    def _time(
        self,
        rows: dict[str, Row],
        work: Work,
        workers: int,
        seconds: dict[tuple[str, str], float],
        deadline: float,
    ) -> None:
        """Passes of all pipelines in changing order; ``seconds`` are updated."""
        failed = set()
        for repeat in range(1 if self.arguments.quick else self.arguments.repeats):
            for pipeline in self.order.sample(list(rows), len(rows)):
                row, key = rows[pipeline], (pipeline, work.task)
                # The first pass may take the time of later groups, which are shorter if it did.
                end = deadline if repeat else self.deadline
                shared = max(1.0, workers / usable_cores())
                expected = (1 + _TIMED) * work.batch * seconds[key] * shared
                if pipeline in failed or time.monotonic() + expected > end:
                    if not row.samples and row.status == "ok":
                        row.status = "skipped"
                        row.detail = USED_UP
                        if expected:
                            row.detail += f"; a pass takes about {expected:.0f} s"
                    continue
                self.steps.begin(f"{row.case}: {row.phase} of {pipeline}")
                try:
                    taken = _pass(pipeline, work, workers)
                except Exception as error:  # a rival that fails is a row of the table
                    row.status, row.detail = "failed", first_line(error)
                    failed.add(pipeline)
                    continue
                row.samples.append(taken)
                seconds[key] = taken * max(workers, 1) / shared


def _pass(pipeline: str, work: Work, workers: int) -> float:
    """Seconds of an image with a loader that is warm."""
    at_once = max(workers, 1)
    batches = load(PIPELINES[pipeline], work, workers)
    with closing(batches):
        for _ in range(at_once):
            next(batches)
        start = time.perf_counter()
        for _ in range(_TIMED * at_once):
            next(batches)
        return (time.perf_counter() - start) / (_TIMED * at_once * work.batch)
