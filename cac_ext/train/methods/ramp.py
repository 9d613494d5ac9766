"""Weights that rise over the first part of a run."""

from __future__ import annotations

import math

from cac_ext.train.config import Config


def sigmoid_ramp(iteration: int, length: float) -> float:
    """``exp(-5 (1 - t)^2)``, t from 0 to 1 over ``length`` iterations, 1 after them (CCT)."""
    t = min(iteration / length, 1.0) if length else 1.0
    return math.exp(-5 * (1 - t) ** 2)


def ramp_after_warmup(config: Config, iteration: int, share: float) -> float:
    """`sigmoid_ramp` over ``share`` of all iterations, from the end of the warm-up on.

    The unlabelled images come in there: counted from the start, the ramp could be over by then.
    """
    return sigmoid_ramp(max(iteration - config.warmup_iterations, 0), share * config.iterations)
