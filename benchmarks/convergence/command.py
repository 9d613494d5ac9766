"""``python -m benchmarks convergence``: the same short training with our loss and with others.

Training amplifies the smallest rounding difference, so any two losses end in different curves. The
yardstick is therefore the oracle itself: the same training with the reference loss in float64, in
float32, and in float32 with the negatives in the opposite order, which changes nothing but the
order of the sums. The table shows the distance of each curve from the float64 one, so that ours can
be compared with the reference in float32.

If the confidence of a pixel crosses the threshold, or its pseudo label changes, in one training and
not in the other, the two losses are made of other pixels. For every step the anchors and the pseudo
labels that differ from those of the float64 training are counted. The distance before the first
such step stands beside the largest.
"""

from __future__ import annotations

import argparse

import torch

import cac_ext
from benchmarks.arguments import positive_float, positive_int, without_folders
from benchmarks.convergence.golden import (
    TOLERANCE,
    deviation,
    read_golden,
    train_curve,
    write_golden,
)
from benchmarks.convergence.table import convergence_table
from benchmarks.convergence.training import LOSSES, OutOfTimeError, train_with
from benchmarks.measure.results import Results, keeping

#: Three seeds take minutes on two cores: the reference takes most of the time.
OVERRIDES = ["data.synthetic.validation=4", "schedule.unlabelled_batch=4"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument(
        "--config", default="synthetic", help="training configuration (default synthetic)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=OVERRIDES,
        metavar="KEY=VALUE",
        help=f"overrides of the configuration (default {' '.join(OVERRIDES)})",
    )
    parser.add_argument(
        "--seeds",
        type=positive_int,
        default=3,
        metavar="COUNT",
        help="trainings with each loss, the first with --seed (default 3)",
    )
    parser.add_argument("--iterations", type=positive_int, default=60, help="default 60")
    parser.add_argument(
        "--time-budget",
        type=positive_float,
        default=1_800.0,
        metavar="SECONDS",
        help="for the whole run; trainings that do not fit are left out (default 1800)",
    )
    parser.add_argument(
        "--update-golden",
        action="store_true",
        help="rewrite the curve that the tests compare the loss with, by the float64 reference",
    )


def _train_all(arguments: argparse.Namespace, seed: int, results: Results) -> None:
    """Train with each loss; each curve goes into the results at once."""
    yardstick = None
    for name in LOSSES:
        what = f"training with {name}, seed {seed}"
        print(what, flush=True)
        try:
            curve, selection = train_with(name, arguments, seed)
        except OutOfTimeError as error:
            print(f"skipped: {error}", flush=True)
            results.skip(what, str(error))
            if yardstick is None:
                results.skip(
                    f"other trainings with seed {seed}", "no float64 curve to compare with"
                )
                return
            continue
        yardstick = yardstick or selection
        of_seed = results.extra["curves"].setdefault(str(seed), {})
        curve.update(selection.differences(yardstick))
        of_seed[name] = curve


def run(arguments: argparse.Namespace) -> int:
    if arguments.update_golden:
        write_golden()
        print("the golden curve is rewritten; commit it together with the reason")
        return 0
    settings = {
        "config": without_folders(arguments.config),
        "overrides": [without_folders(override) for override in arguments.overrides],
        "iterations": arguments.iterations,
        "seed": arguments.seed,
        "seeds": arguments.seeds,
        "time_budget": arguments.time_budget,
    }
    device = torch.device(arguments.device)
    results = Results.start("convergence", settings, device, arguments.command_line)
    results.extra["curves"] = {}
    with keeping(results, arguments.output, convergence_table) as kept:
        golden = deviation(
            train_curve(cac_ext.directional_contrastive_loss, torch.float32), read_golden()
        )
        results.extra["golden"] = {"deviation": golden, "tolerance": TOLERANCE}
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            _train_all(arguments, seed, results)
            kept.save_so_far()
    return 0 if golden <= TOLERANCE else 1
