"""``python -m benchmarks methods``: all methods on the built-in data, and what a step costs."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.errors import UsageError
from benchmarks.trainings.arguments import add_method_arguments, check_seeds
from benchmarks.trainings.records import (
    Cost,
    TrainingResults,
    collect_runs,
    gains_of,
    new_results,
    write_results,
)
from benchmarks.trainings.table import class_table, cost_table, page, seed_table

DESCRIPTION = """
Trains every method with several seeds on the built-in data: same network, images and iterations,
and the default settings of each method. accuracy: mIoU, its spread, and the IoU of each class.
cost: time and memory of a step of each method, in a process of its own, which should have the
machine to itself. DIR of --output receives a JSON file and a table of each part, picture.png of the
first seed, and the run folders in runs/. After an interruption the same command resumes.
"""

PARTS = ("accuracy", "cost")
METHODS = (
    *("sup_only", "cac", "mean_teacher", "cct", "gct", "s4gan", "ecs", "fixmatch", "unimatch"),
    *("mean_teacher_cac", "fixmatch_cac", "unimatch_cac"),
)
QUICK = ("schedule.epochs=2", "schedule.iterations_per_epoch=2", "schedule.warmup_epochs=1")
#: A few steps without a warm-up, whose steps are cheaper; the first log entry is not counted.
COST_STEPS = (
    *("schedule.epochs=1", "schedule.iterations_per_epoch=25", "schedule.warmup_epochs=0"),
    *("schedule.log_every=5", "run.negative_precision=false", "data.synthetic.validation=1"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("--only", choices=PARTS, help="one of the two parts")
    add_method_arguments(parser, methods=",".join(METHODS))


def run(arguments: argparse.Namespace) -> int:
    check_seeds(arguments.seeds)
    # Before anything is measured: a folder that cannot be made is known at once.
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    parts = {"accuracy": _accuracy, "cost": _cost}
    for part in PARTS if arguments.only is None else (arguments.only,):
        code = parts[part](arguments)
        if code:
            return code
    return 0


def _accuracy(arguments: argparse.Namespace) -> int:
    from cac_ext.train.cli.main import main as cac_ext

    command = _comparison(arguments, f"{arguments.output}/runs")
    print(f"cac-ext {shlex.join(command)}", flush=True)
    code = cac_ext(command)
    if code:
        return code
    output = Path(arguments.output)
    command = _comparison(arguments, "OUTPUT/runs")  # the result file names no folder
    results = _new_results("accuracy", arguments, f"cac-ext {shlex.join(command)}")
    runs = results["runs"] = collect_runs(output / "runs")
    results["gains"] = gains_of(runs)
    shutil.copy(output / "runs" / "picture.png", output / "picture.png")
    what = f"The built-in data, {runs[-1]['iterations']} iterations"
    write_results(output, results, page(results, [seed_table(results), class_table(runs)], what))
    return 0


def _cost(arguments: argparse.Namespace) -> int:
    methods = arguments.methods.split(",")
    costs = []
    for number, method in enumerate(methods, 1):
        print(f"[{number}/{len(methods)}] {method}", flush=True)
        costs.append(_cost_of(method, arguments.overrides))
    command = ["methods", "--only", "cost", "--methods", arguments.methods, "--output", "OUTPUT"]
    command += arguments.overrides
    results = _new_results("cost", arguments, f"python -m benchmarks {shlex.join(command)}")
    results["costs"] = costs
    what = "Steps on the built-in data; memory is the peak "
    what += "of the process" if results["machine"]["device"] == "cpu" else "of tensors on the GPU"
    write_results(Path(arguments.output), results, page(results, [cost_table(costs)], what))
    return 0


def _cost_of(method: str, overrides: Sequence[str]) -> Cost:
    """Trains a few steps in a new process, so that its peak of memory is that of the method."""
    from cac_ext.train.experiments.methods import method_overrides
    from cac_ext.train.runs.log import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        settings = [*method_overrides(method), *COST_STEPS, *overrides]
        command = [sys.executable, "-m", "cac_ext.train", "train", "synthetic", *settings]
        done = subprocess.run([*command, "--folder", folder], capture_output=True, text=True)
        if done.returncode:
            raise UsageError(f"{method} cannot be trained: {done.stderr.strip()[-2000:]}")
        lines = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if "loss" in line]
    return {
        "method": method,
        "seconds_per_step": median(line["seconds_per_step"] for line in lines[1:] or lines),
        "memory_mib": max(line["memory_mib"] for line in lines),
    }


def _comparison(arguments: argparse.Namespace, folder: str) -> list[str]:
    """The arguments of `cac-ext`."""
    seeds = arguments.seeds.split(",")[: 1 if arguments.quick else None]
    command = ["compare", "synthetic", "--methods", arguments.methods]
    command += ["--seeds", ",".join(seeds), "--folder", folder]
    return [*command, *(QUICK if arguments.quick else ()), *arguments.overrides]


def _new_results(part: str, arguments: argparse.Namespace, command: str) -> TrainingResults:
    from cac_ext.train.config import load
    from cac_ext.train.runtime.distributed import find_device

    device = find_device(load("synthetic", arguments.overrides).device)
    return new_results(part, command, device, quick=arguments.quick)
