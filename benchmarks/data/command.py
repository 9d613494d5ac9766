"""``python -m benchmarks data``: how many images a second are read and augmented."""

from __future__ import annotations

import argparse

import torch

from benchmarks.arguments import non_negative_int, positive_float, positive_int
from benchmarks.data.pictures import CASES
from benchmarks.data.table import data_table
from benchmarks.measure.results import Results, keeping

_PIPELINES = ("ours", "torchvision", "unimatch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cases",
        nargs="+",
        default=list(CASES),
        choices=CASES,
        metavar="NAME",
        help=f"sizes of pictures (default {' '.join(CASES)})",
    )
    parser.add_argument(
        "--pipelines",
        nargs="+",
        default=list(_PIPELINES),
        choices=_PIPELINES,
        metavar="NAME",
        help=f"default {' '.join(_PIPELINES)}",
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        type=non_negative_int,
        default=[0, 2],
        metavar="N",
        help="processes that load; 0 is the measuring process itself (default 0 2)",
    )
    parser.add_argument("--repeats", type=positive_int, default=5, help="passes each, at most")
    parser.add_argument(
        "--time-budget", type=positive_float, default=300.0, metavar="SECONDS", help="default 300"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one pass over tiny pictures, to prove that all of it runs",
    )


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.data.run import DataRun  # needs the trainer's packages; --help does not

    names = ("cases", "pipelines", "workers", "repeats", "time_budget", "quick", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    device = torch.device(arguments.device)
    results = Results.start("data", settings, device, arguments.command_line)
    measurement = DataRun(arguments, results)
    with keeping(results, arguments.output, data_table) as kept:
        measurement.run(kept.end_process if arguments.own_process else None)
    return 0
