"""``python -m benchmarks loss``: the loss against what people use today."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.cases import CASES, find_cases
from benchmarks.contenders import TYPES, make_contenders
from benchmarks.foreign_load import ForeignLoad
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.loss_run import LossRun
from benchmarks.loss_table import loss_table
from benchmarks.results import Results

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
        "--implementations",
        nargs="+",
        metavar="NAME[:TYPE]",
        help=f"with an input type ({', '.join(TYPES)}; high and medium are the precision set for "
        "float32 products) or in the usual ones; see below; "
        f"default on a CPU: {' '.join(DEFAULT_ON_CPU)}, on a GPU: all",
    )
    parser.add_argument("--repeats", type=int, default=20, help="timed calls each, at most")
    parser.add_argument(
        "--time-budget",
        type=float,
        default=280.0,
        metavar="SECONDS",
        help="for the whole run; slow rivals get fewer calls, hopeless ones none (default 280)",
    )
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="skip the memory measurement"
    )
    parser.add_argument(
        "--memory-limit",
        type=float,
        metavar="GIB",
        help="what one CPU call may take before it counts as out of memory "
        "(default: 90%% of what is free)",
    )


def run(arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    names = arguments.implementations or (
        DEFAULT_ON_CPU if device.type == "cpu" else list(IMPLEMENTATIONS)
    )
    contenders = make_contenders(names, device)
    cases = find_cases(arguments.cases)
    settings = {
        "cases": arguments.cases,
        "implementations": [contender.label() for contender in contenders],
        "repeats": arguments.repeats,
        "time_budget": arguments.time_budget,
        "seed": arguments.seed,
    }
    results = Results.start("loss", settings, device)
    load = ForeignLoad()
    measurement = LossRun(
        results,
        contenders,
        device=device,
        seed=arguments.seed,
        repeats=arguments.repeats,
        time_budget=arguments.time_budget,
        memory=arguments.memory,
        memory_limit=int(arguments.memory_limit * 2**30) if arguments.memory_limit else None,
    )
    # Every size compiles anew. By default torch stops compiling after a few, without a word, and
    # compiled rivals would be timed uncompiled.
    with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
        measurement.run(cases)
    results.machine["foreign_load"] = load.share()
    print(loss_table(results))
    if arguments.output:
        results.save(Path(arguments.output))
        print(f"\nwritten: {arguments.output}")
    return 0
