"""SGD with poly decay (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import SGD, Optimizer

from cac_ext.train.config import OptimizerConfig


def build_sgd(config: OptimizerConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """SGD over parameter groups, each with the key ``learning_rate``."""
    return SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


def set_learning_rates(
    optimizers: Iterable[Optimizer], config: OptimizerConfig, iteration: int, iterations: int
) -> None:
    """Sets each group to ``learning_rate * (1 - iteration / iterations) ** power``; stateless."""
    decay = (1 - iteration / iterations) ** config.poly_power
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["learning_rate"] * decay
