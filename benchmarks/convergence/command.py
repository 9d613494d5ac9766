"""``python -m benchmarks convergence``: the same short training with our loss and with others.

Training amplifies the smallest rounding difference, so two curves part in the end whatever the
losses. The yardstick is therefore the oracle against itself: the same training with the reference
loss computed in float64, in float32, and in float32 with the negatives in the opposite order, which
changes nothing but the order of the sums. The table says how far each curve is from the float64
one, so that ours can be held against the reference in float32.

A pixel whose confidence crosses the threshold, or whose pseudo label changes, in one training and
not in the other changes what the loss is made of. For every step the anchors and the pseudo labels
that differ from those of the float64 training are counted, and the distance before the first such
step is given beside the largest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import cac_ext
from benchmarks.arguments import positive_float, positive_int, without_folders
from benchmarks.convergence.golden import (
    TOLERANCE,
    deviation,
    read_golden,
    train_curve,
    write_golden,
)
from benchmarks.errors import UsageError
from benchmarks.measure.results import Results, keeping
from cac_ext import reference
from cac_ext.train.runtime.text_tables import aligned_table

YARDSTICK = "reference float64"
#: So that three seeds take minutes on two cores: the reference takes most of it.
OVERRIDES = ["data.synthetic.validation=4", "schedule.unlabelled_batch=4"]


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


LOSSES: dict[str, Callable[..., Tensor]] = {
    YARDSTICK: _reference_float64,
    "reference float32": reference.directional_contrastive_loss,
    "reference float32, negatives reversed": _reference_reversed,
    "ours": cac_ext.directional_contrastive_loss,
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
        default=OVERRIDES,
        metavar="KEY=VALUE",
        help=f"overrides of the configuration (default {' '.join(OVERRIDES)})",
    )
    parser.add_argument(
        "--seeds",
        type=positive_int,
        default=3,
        metavar="COUNT",
        help="trainings with each loss, from --seed on (default 3)",
    )
    parser.add_argument("--iterations", type=positive_int, default=60, help="default 60")
    parser.add_argument(
        "--time-budget",
        type=positive_float,
        default=1_800.0,
        metavar="SECONDS",
        help="for the whole run; a training that does not fit is left out (default 1800)",
    )
    parser.add_argument(
        "--update-golden",
        action="store_true",
        help="rewrite the curve that the tests hold the loss to, from the float64 reference",
    )


class OutOfTimeError(Exception):
    """A training would not end within the time budget; the message says how long it would take."""


@dataclass
class Pace:
    """Stops a training of so many steps as soon as it is clear that it would end too late."""

    steps: int
    deadline: float  # on the clock of `time.monotonic`
    begun: list[float] = field(default_factory=list)  # when each step began

    def step(self) -> None:
        """Call it at every step.

        Raises:
            OutOfTimeError: what is left of the training does not fit.
        """
        now = time.monotonic()
        self.begun.append(now)
        # The trainer tries the loss once before the first step; the first step warms up.
        done = len(self.begun) - 3
        each = (now - self.begun[2]) / done if done > 0 else 0.0
        if now + each * (self.steps - done - 1) > self.deadline:
            taken = f"would take about {each * self.steps:.0f} s" if done > 0 else "did not begin"
            left = max(self.deadline - now, 0)
            raise OutOfTimeError(f"{taken}, and {left:.0f} s of the time budget are left")


@dataclass
class Selection:
    """What a loss was made of, step by step; an instance stands in for ``loss``."""

    loss: Callable[..., Tensor]
    pace: Pace | None = None
    active: list[Tensor] = field(default_factory=list)  # [2, A] bool, anchors of each direction
    labels: list[Tensor] = field(default_factory=list)  # [2 A + N] of both views and the negatives

    def __call__(self, *arguments: Tensor, **options) -> Tensor:
        confidences1, confidences2, labels1, labels2 = arguments[2:6]
        threshold = options["confidence_threshold"]
        towards2 = (confidences1 < confidences2) & (confidences2 > threshold)
        towards1 = (confidences2 < confidences1) & (confidences1 > threshold)
        self.active.append(torch.stack([towards2, towards1]).cpu())
        self.labels.append(torch.cat([labels1, labels2, arguments[7]]).cpu())
        if self.pace is not None:
            self.pace.step()
        return self.loss(*arguments, **options)

    def differences(self, other: Selection) -> dict[str, list[int]]:
        """Of each step: active anchors, and how many of them and of the labels differ."""
        pairs = zip(self.active, other.active, strict=True)
        labels = zip(self.labels, other.labels, strict=True)
        return {
            "active": [int(mask.sum()) for mask in self.active],
            "anchors_changed": [int((mine != its).sum()) for mine, its in pairs],
            "labels_changed": [int((mine != its).sum()) for mine, its in labels],
        }


def _train(arguments: argparse.Namespace, name: str, seed: int) -> tuple[dict, Selection]:
    """Total and unsupervised loss of every iteration, and what they were made of."""
    from cac_ext.train.config import load
    from cac_ext.train.loop import train
    from cac_ext.train.methods.cac import Cac
    from cac_ext.train.runs.log import read_metrics

    config = load(
        arguments.config,
        [
            *arguments.overrides,
            f"seed={seed}",
            f"device={arguments.device}",
            "schedule.epochs=1",
            "schedule.warmup_epochs=0",
            f"schedule.iterations_per_epoch={arguments.iterations}",
            "schedule.log_every=1",
        ],
    )
    if config.method.loss != "contrastive" or not config.method.directional:
        raise UsageError(
            "the losses compared are directional and contrastive: set method.loss=contrastive "
            f"method.directional=true (are {config.method.loss} and {config.method.directional})"
        )
    pace = Pace(arguments.iterations, arguments.started + arguments.time_budget)
    selection = Selection(LOSSES[name], pace)
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", build=partial(Cac, loss=selection))
        lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    steps = [line for line in lines if line["split"] == "train"]
    curve = {key: [line[key] for line in steps] for key in ("loss", "loss_unsupervised")}
    return curve, selection


def _train_all(arguments: argparse.Namespace, seed: int, results: Results) -> None:
    """Put one curve of each loss into the results, each as soon as it is there."""
    yardstick = None
    for name in LOSSES:
        what = f"training with {name}, seed {seed}"
        print(what, flush=True)
        try:
            curve, selection = _train(arguments, name, seed)
        except OutOfTimeError as error:
            print(f"skipped: {error}", flush=True)
            results.skip(what, str(error))
            if yardstick is None:
                results.skip(f"other trainings with seed {seed}", "nothing to hold them against")
                return
            continue
        yardstick = yardstick or selection
        of_seed = results.extra["curves"].setdefault(str(seed), {})
        of_seed[name] = {**curve, **selection.differences(yardstick)}


def run(arguments: argparse.Namespace) -> int:
    if arguments.update_golden:
        write_golden()
        print("the golden curve was rewritten; commit it together with the reason")
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
    with keeping(results, arguments.output, _table_and_warning) as kept:
        golden = deviation(
            train_curve(cac_ext.directional_contrastive_loss, torch.float32), read_golden()
        )
        results.extra["golden"] = {"deviation": golden, "tolerance": TOLERANCE}
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            _train_all(arguments, seed, results)
            kept.save_so_far()
    return 0 if golden <= TOLERANCE else 1


def _table_and_warning(results: Results) -> str:
    return "\n\n".join(filter(None, [convergence_table(results), results.warning()]))


def convergence_table(results: Results) -> str:
    """How far each curve is from the yardstick's, and which steps were made of other pixels."""
    header = ["seed", "loss", "largest distance", "at step", "anchors, labels that differ there"]
    header += ["median", "steps with others", "first", "largest before"]
    rows = []
    for seed, curves in results.extra["curves"].items():
        for name, curve in curves.items():
            if name != YARDSTICK:
                rows.append([seed, name, *_distances(curve, curves[YARDSTICK])])
    golden = results.extra["golden"]
    return (
        "relative distance from the float64 curve; others: anchors or pseudo labels that differ\n"
        + aligned_table(header, rows, left=2)
        + f"\n\ngolden curve: largest relative distance {golden['deviation']:.1e}"
        + f" (allowed {golden['tolerance']:.0e})"
    )


def _distances(curve: dict, yardstick: dict) -> list[str]:
    pairs = zip(curve["loss"], yardstick["loss"], strict=True)
    distances = [abs(value / expected - 1) for value, expected in pairs]
    largest = max(range(len(distances)), key=lambda step: distances[step])
    anchors, labels = curve["anchors_changed"], curve["labels_changed"]
    changed = changed_steps(curve)
    before = distances[: changed[0]] if changed else distances
    return [
        f"{distances[largest]:.1e}",
        f"{largest + 1}",
        f"{anchors[largest]}, {labels[largest]}",
        f"{median(distances):.1e}",
        f"{len(changed)}",
        f"{changed[0] + 1}" if changed else "-",
        f"{max(before):.1e}" if before else "-",
    ]


def changed_steps(curve: dict) -> list[int]:
    """Steps, from 0, with other anchors or pseudo labels than the yardstick's."""
    pairs = zip(curve["anchors_changed"], curve["labels_changed"], strict=True)
    return [step for step, (anchors, labels) in enumerate(pairs) if anchors or labels]
