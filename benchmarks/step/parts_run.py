"""Measures the parts of a training step as rows of a result."""

from __future__ import annotations

import argparse
from statistics import fmean

from benchmarks.errors import UsageError
from benchmarks.measure.results import Results, Row
from benchmarks.step.parts import PARTS, divide, profile_training
from cac_ext.train.config import load


def measure_parts(arguments: argparse.Namespace, results: Results) -> None:
    """Fill the rows, one for each part, and ``extra["rest"]``."""
    first = load(arguments.config, arguments.overrides)
    if first.method.name != "cac":
        raise UsageError(
            f"parts are those of method.name=cac, but {arguments.config} has {first.method.name}"
        )
    each = first.schedule.log_every
    steps = each * arguments.samples
    config = load(
        arguments.config,
        [
            *arguments.overrides,
            "device=cpu",
            f"seed={arguments.seed}",
            "schedule.epochs=1",
            f"schedule.iterations_per_epoch={arguments.warm_up + steps + 1}",
            "schedule.warmup_epochs=0",
        ],
    )
    divided, rest = divide(profile_training(config, arguments.warm_up, steps))
    results.cases["step"] = {"batch": config.schedule.labelled_batch}
    for part in PARTS:
        samples = [
            fmean(step[part] for step in divided[start : start + each])
            for start in range(0, len(divided), each)
        ]
        results.rows.append(Row("step", part, "float32", "part", samples=samples))
    largest = sorted(rest.items(), key=lambda item: -item[1])
    results.extra["rest"] = {name: seconds / len(divided) for name, seconds in largest}
