"""``python -m benchmarks loss``: the loss against what people use today."""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.arguments import positive_float, positive_int
from benchmarks.cases import CASES, Case, find_cases
from benchmarks.errors import UsageError
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.implementations.contenders import TYPES, make_contenders
from benchmarks.loss.case import LossOptions
from benchmarks.loss.family import CASES as FAMILY
from benchmarks.loss.family import FamilyOptions, family_table, measure_family
from benchmarks.loss.run import LossRun
from benchmarks.loss.sets import SetOptions, contenders_of, measure_sets, sets_table
from benchmarks.loss.table import loss_table
from benchmarks.measure.memory import free_bytes
from benchmarks.measure.results import Results, keeping

DEFAULT_ON_CPU = ["official", "tiled", "ours", "naive"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "implementations:\n" + "\n".join(
        f"  {name:<18} {kind.description}" for name, kind in IMPLEMENTATIONS.items()
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["voc"],
        metavar="CASE",
        help=f"default: voc; names or series: {', '.join(CASES)}, all",
    )
    parser.add_argument(
        "--family",
        nargs="*",
        metavar="LOSS",
        help="measure other losses of the field instead (docs/losses.md), ours against whole "
        f"matrices, eager and compiled; default: {' '.join(case.name for case in FAMILY)}",
    )
    parser.add_argument(
        "--instruction-sets",
        nargs="*",
        metavar="SET",
        help="measure our CPU kernel alone with each instruction set of this processor, and what "
        "bounds it; default: all",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        metavar="NAME[:TYPE]",
        help=f"with an input type ({', '.join(TYPES)}; high and medium are the precision of "
        "float32 products) or in the usual ones; see below; "
        f"default on a CPU: {' '.join(DEFAULT_ON_CPU)}, on a GPU: all that run there",
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=20, help="timed calls each, at most (default 20)"
    )
    parser.add_argument(
        "--time-budget",
        type=positive_float,
        default=280.0,
        metavar="SECONDS",
        help="for the whole run, checks and yardsticks included; slow rivals get fewer calls, "
        "the slowest none (default 280)",
    )
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="skip the memory measurement"
    )
    parser.add_argument(
        "--memory-limit",
        type=positive_float,
        metavar="GIB",
        help="a CPU call that takes more counts as out of memory, measured or timed "
        "(default: 90%% of the free memory)",
    )


def run(arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    if arguments.family is not None:
        return _run_family(arguments, device)
    if arguments.instruction_sets is not None:
        return _run_sets(arguments, device)
    names = arguments.implementations or (
        DEFAULT_ON_CPU
        if device.type == "cpu"
        else [name for name, kind in IMPLEMENTATIONS.items() if "cuda" in kind.devices]
    )
    contenders = make_contenders(names, device)
    cases = _cases(arguments)
    settings = {
        "cases": arguments.cases,
        "implementations": [contender.label() for contender in contenders],
        "repeats": arguments.repeats,
        "time_budget": arguments.time_budget,
        "memory": arguments.memory,
        "memory_limit_gib": arguments.memory_limit,
        "seed": arguments.seed,
    }
    results = Results.start("loss", settings, device, arguments.command_line)
    options = LossOptions(
        device,
        seed=arguments.seed,
        repeats=arguments.repeats,
        memory=arguments.memory,
        memory_limit=int(arguments.memory_limit * 2**30) if arguments.memory_limit else None,
    )
    with keeping(results, arguments.output, loss_table) as kept:
        measurement = LossRun(
            results, contenders, options, arguments.time_budget, arguments.started
        )
        # Every size compiles anew. By default torch silently stops compiling after a few sizes, and
        # compiled rivals would be timed uncompiled.
        with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
            measurement.run(cases, kept, kept.end_process if arguments.own_process else None)
    return 0


def _cases(arguments: argparse.Namespace) -> list[Case]:
    try:
        return find_cases(arguments.cases)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _run_sets(arguments: argparse.Namespace, device: torch.device) -> int:
    if device.type != "cpu":
        raise UsageError(f"--instruction-sets are those of the CPU, but the device is {device}")
    cases = _cases(arguments)
    contenders_of(tuple(arguments.instruction_sets))  # refuses unknown sets before the results
    options = SetOptions(
        sets=tuple(arguments.instruction_sets),
        seed=arguments.seed,
        repeats=arguments.repeats,
        deadline=(arguments.started or time.monotonic()) + arguments.time_budget,
    )
    settings = {
        "cases": arguments.cases,
        "instruction_sets": arguments.instruction_sets,
        "repeats": arguments.repeats,
        "time_budget": arguments.time_budget,
        "seed": arguments.seed,
    }
    results = Results.start("sets", settings, device, arguments.command_line)
    with keeping(results, arguments.output, sets_table) as kept:
        measure_sets(results, cases, options, kept)
    return 0


def _run_family(arguments: argparse.Namespace, device: torch.device) -> int:
    known = [case.name for case in FAMILY]
    for name in arguments.family:
        if name not in known:
            raise UsageError(f"no loss is called {name!r}; there are: {', '.join(known)}")
    limit = arguments.memory_limit
    options = FamilyOptions(
        device,
        seed=arguments.seed,
        repeats=arguments.repeats,
        deadline=(arguments.started or time.monotonic()) + arguments.time_budget,
        memory_limit=int(limit * 2**30) if limit else free_bytes(),
        cases=tuple(arguments.family),
    )
    settings = {
        "family": arguments.family or known,
        "repeats": arguments.repeats,
        "time_budget": arguments.time_budget,
        "seed": arguments.seed,
    }
    results = Results.start("family", settings, device, arguments.command_line)
    with (
        keeping(results, arguments.output, family_table) as kept,
        torch._dynamo.config.patch(recompile_limit=1000),
    ):
        measure_family(results, options, kept)
    return 0
