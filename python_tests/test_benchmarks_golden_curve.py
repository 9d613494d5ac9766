"""A change of the loss shows in the golden curve of a small training."""

from __future__ import annotations

import pytest
import torch

import cac_ext
from benchmarks.convergence.golden import TOLERANCE, deviation, read_golden, train_curve
from cac_ext import reference


def test_training_with_the_fused_loss_follows_the_golden_curve() -> None:
    curve = train_curve(cac_ext.directional_contrastive_loss, torch.float32)
    assert deviation(curve, read_golden()) <= TOLERANCE


def test_the_golden_curve_is_the_oracles_own() -> None:
    curve = train_curve(reference.directional_contrastive_loss, torch.float64, steps=15)
    assert deviation(curve, read_golden()[:15]) <= 1e-7


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.1001}, {"confidence_threshold": 0.74}, {"reduction": "mean"}, {"eps": 1e-4}],
    ids=lambda change: next(iter(change)),
)
def test_a_small_change_of_the_loss_leaves_the_golden_curve(change: dict) -> None:
    def changed(*arguments):
        return cac_ext.directional_contrastive_loss(*arguments, **change)

    curve = train_curve(changed, torch.float32, steps=15)
    assert deviation(curve, read_golden()[:15]) > TOLERANCE
