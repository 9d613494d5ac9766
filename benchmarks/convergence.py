"""``python -m benchmarks convergence``: the same short training with our loss and with others.

Training amplifies the smallest rounding difference, so two curves part in the end whatever the
losses. The yardstick is therefore the oracle against itself: the same training with the reference
loss computed in float64, in float32, and in float32 with the negatives in the opposite order, which
changes nothing but the order of the sums. Ours should stay as near as these do.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import cac_ext
from benchmarks import table
from benchmarks.foreign_load import ForeignLoad
from benchmarks.golden import TOLERANCE, deviation, read_golden, train_curve, write_golden
from benchmarks.loss_exchange import training_with
from benchmarks.results import Results
from cac_ext import reference

YARDSTICK = "reference float64"


def _reference_float64(features1: Tensor, features2: Tensor, *arguments: Tensor, **options):
    features = [features1.double(), features2.double()]
    confidences_and_labels, negatives = arguments[:4], arguments[4].double()
    weights = options.pop("weights", None)
    return reference.directional_contrastive_loss(
        *features,
        *confidences_and_labels,
        negatives,
        *arguments[5:],
        weights=None if weights is None else weights.double(),
        **options,
    ).to(features1.dtype)


def _reference_reversed(features1: Tensor, features2: Tensor, *arguments: Tensor, **options):
    negatives, negative_labels = arguments[4:6]
    return reference.directional_contrastive_loss(
        features1, features2, *arguments[:4], negatives.flip(0), negative_labels.flip(0), **options
    )


LOSSES: dict[str, Callable[..., Tensor] | None] = {
    YARDSTICK: _reference_float64,
    "reference float32": reference.directional_contrastive_loss,
    "reference float32, negatives reversed": _reference_reversed,
    "ours": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument(
        "--config", default="synthetic", help="training configuration (default synthetic)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=["data.synthetic.validation=4"],
        metavar="KEY=VALUE",
        help="overrides of the configuration (default data.synthetic.validation=4)",
    )
    parser.add_argument("--iterations", type=int, default=60, help="default 60")
    parser.add_argument(
        "--update-golden",
        action="store_true",
        help="rewrite the curve that the tests hold the loss to, from the float64 reference",
    )


def _train(arguments: argparse.Namespace, name: str) -> tuple[list[float], list[float]]:
    """Total and unsupervised loss of every iteration."""
    from cac_ext.train.config import load
    from cac_ext.train.loop import train
    from cac_ext.train.run_log import read_metrics

    config = load(
        arguments.config,
        [
            *arguments.overrides,
            f"seed={arguments.seed}",
            f"device={arguments.device}",
            "schedule.epochs=1",
            "schedule.warmup_epochs=0",
            f"schedule.iterations_per_epoch={arguments.iterations}",
            "schedule.log_every=1",
        ],
    )
    with tempfile.TemporaryDirectory() as folder, training_with(LOSSES[name]):
        train(config, Path(folder) / "run")
        lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    steps = [line for line in lines if line["split"] == "train"]
    return [line["loss"] for line in steps], [line["loss_unsupervised"] for line in steps]


def run(arguments: argparse.Namespace) -> int:
    if arguments.update_golden:
        write_golden()
        print("the golden curve was rewritten; commit it together with the reason")
        return 0
    settings = {
        name: getattr(arguments, name) for name in ("config", "overrides", "iterations", "seed")
    }
    results = Results.start("convergence", settings, torch.device(arguments.device))
    load = ForeignLoad()
    curves = {}
    for name in LOSSES:
        print(f"training with {name}")
        total, unsupervised = _train(arguments, name)
        curves[name] = {"loss": total, "loss_unsupervised": unsupervised}
    results.machine["foreign_load"] = load.share()
    results.extra["curves"] = curves
    golden = deviation(
        train_curve(cac_ext.directional_contrastive_loss, torch.float32), read_golden()
    )
    results.extra["golden"] = {"deviation": golden, "tolerance": TOLERANCE}
    print(convergence_table(results))
    if arguments.output:
        results.save(Path(arguments.output))
        print(f"\nwritten: {arguments.output}")
    return 0 if golden <= TOLERANCE else 1


def convergence_table(results: Results) -> str:
    """How far each curve is from the yardstick: the largest distance in a tenth, a half and all of
    the iterations, and the median.

    A single pixel whose confidence crosses a threshold in one curve and not in the other makes a
    jump that may be gone with the next step: the largest distance shows it, the median does not.
    """
    curves = results.extra["curves"]
    yardstick = curves[YARDSTICK]["loss"]
    ends = sorted({max(1, round(len(yardstick) * share)) for share in (0.1, 0.5, 1.0)})
    rows = []
    for name, curve in curves.items():
        if name != YARDSTICK:
            distances = [deviation(curve["loss"][:end], yardstick[:end]) for end in ends]
            distances.append(
                median(abs(a / b - 1) for a, b in zip(curve["loss"], yardstick, strict=True))
            )
            rows.append([name, *(f"{distance:.1e}" for distance in distances)])
    header = ["distance from the float64 curve", *(f"<= {end} steps" for end in ends), "median"]
    golden = results.extra["golden"]
    return (
        table.render(header, rows)
        + f"\n\ngolden curve: largest relative distance {golden['deviation']:.1e}"
        + f" (allowed {golden['tolerance']:.0e})"
    )
