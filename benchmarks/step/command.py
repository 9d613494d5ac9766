"""``python -m benchmarks step``: the cost of each loss in a whole training step."""

from __future__ import annotations

import argparse

import torch

from benchmarks.arguments import positive_float, positive_int, without_folders
from benchmarks.cases import TABLE4
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.implementations.contenders import NO_LOSS
from benchmarks.measure.results import Results, keeping
from benchmarks.step.search import SEARCH_SHARE
from benchmarks.step.table import PAPER, step_table


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
        default=list(TABLE4),
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
        f"all searches together take {100 * SEARCH_SHARE:.0f}%% of the time budget",
    )


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.step.run import StepRun  # needs the trainer's packages; --help does not

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
