"""Short trainings that differ in the loss alone, with a record of what each loss was made of."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cac_ext
from benchmarks.errors import UsageError
from benchmarks.measure.records import Curve
from cac_ext import reference

#: A loss as the trainer calls it: the loss, and with it the direction of each pixel.
Loss = Callable[..., tuple[Tensor, Tensor]]

YARDSTICK = "reference float64"


def _reference_float64(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    labels1: Tensor,
    labels2: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
    *,
    weights: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    loss, direction = reference.directional_contrastive_loss(
        features1.double(),
        features2.double(),
        confidences1,
        confidences2,
        labels1,
        labels2,
        negatives.double(),
        negative_labels,
        weights=None if weights is None else weights.double(),
        **options,
    )
    return loss.to(features1.dtype), direction


def _reference_float32(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    loss, direction = reference.directional_contrastive_loss(*arguments, **options)
    return loss, direction


def _reference_reversed(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    *first, negatives, negative_labels = arguments
    return _reference_float32(*first, negatives.flip(0), negative_labels.flip(0), **options)


LOSSES: dict[str, Loss] = {
    YARDSTICK: _reference_float64,
    "reference float32": _reference_float32,
    "reference float32, negatives reversed": _reference_reversed,
    "ours": cac_ext.directional_contrastive_loss,
}


class OutOfTimeError(Exception):
    """A training would not end within the time budget; the message says how long it would take."""


@dataclass
class Pace:
    """Stops a training of ``steps`` steps as soon as it is clear that it would end too late."""

    steps: int
    deadline: float  # on the clock of `time.monotonic`
    begun: list[float] = field(default_factory=list)  # start of each step

    def step(self) -> None:
        """Call it at every step.

        Raises:
            OutOfTimeError: the rest of the training does not fit.
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

    loss: Loss
    pace: Pace | None = None
    active: list[Tensor] = field(default_factory=list)  # [2, A] bool, anchors of each direction
    labels: list[Tensor] = field(default_factory=list)  # [2 A + N] of both views and the negatives

    def __call__(self, *arguments: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        confidences1, confidences2, labels1, labels2 = arguments[2:6]
        active = reference.direction_masks(
            confidences1, confidences2, options["confidence_threshold"]
        )
        self.active.append(active.cpu())
        self.labels.append(torch.cat([labels1, labels2, arguments[7]]).cpu())
        if self.pace is not None:
            self.pace.step()
        return self.loss(*arguments, **options)

    def differences(self, other: Selection) -> Curve:
        """Of each step: active anchors, and how many of them and of the labels differ."""
        anchors = zip(self.active, other.active, strict=True)
        labels = zip(self.labels, other.labels, strict=True)
        return {
            "active": [int(mask.sum()) for mask in self.active],
            "anchors_changed": [int((mine != its).sum()) for mine, its in anchors],
            "labels_changed": [int((mine != its).sum()) for mine, its in labels],
        }


def train_with(name: str, arguments: argparse.Namespace, seed: int) -> tuple[Curve, Selection]:
    """Train with one of `LOSSES`: the losses of every iteration, and what they were made of."""
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
            "the compared losses are directional and contrastive, but method.loss is "
            f"{config.method.loss} and method.directional is {config.method.directional}: "
            "set method.loss=contrastive method.directional=true"
        )
    pace = Pace(arguments.iterations, arguments.started + arguments.time_budget)
    selection = Selection(LOSSES[name], pace)
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", build=partial(Cac, loss=selection))
        lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    steps = [line for line in lines if line["split"] == "train"]
    curve: Curve = {
        "loss": [line["loss"] for line in steps],
        "loss_unsupervised": [line["loss_unsupervised"] for line in steps],
    }
    return curve, selection
