"""Weights that rise over the first part of a run."""

from __future__ import annotations

import math


def sigmoid_ramp(iteration: int, length: float) -> float:
    """``exp(-5 (1 - t)^2)``, t from 0 to 1 over ``length`` iterations, 1 after them (CCT)."""
    t = min(iteration / length, 1.0) if length else 1.0
    return math.exp(-5 * (1 - t) ** 2)
