"""``python -m benchmarks parts``: what a training step spends beside network and losses."""

from __future__ import annotations

import argparse

import torch

from benchmarks.arguments import positive_int, without_folders
from benchmarks.errors import UsageError
from benchmarks.measure.results import Results, keeping
from benchmarks.step.parts_table import parts_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        default="synthetic",
        help="training configuration of method cac, a shipped name or a file (default synthetic)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="overrides of the configuration",
    )
    parser.add_argument(
        "--warm-up", type=positive_int, default=10, help="steps before the first (default 10)"
    )
    parser.add_argument(
        "--samples",
        type=positive_int,
        default=3,
        help="means over schedule.log_every steps, one of which is logged (default 3)",
    )


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.step.parts_run import measure_parts  # needs the trainer's packages

    device = torch.device(arguments.device)
    if device.type != "cpu":
        raise UsageError("parts are measured on a CPU: on a GPU they overlap; leave out --device")
    settings = {
        "config": without_folders(arguments.config),
        "overrides": [without_folders(override) for override in arguments.overrides],
        **{name: getattr(arguments, name) for name in ("warm_up", "samples", "seed")},
    }
    results = Results.start("parts", settings, device, arguments.command_line)
    with keeping(results, arguments.output, parts_table):
        measure_parts(arguments, results)
    return 0
