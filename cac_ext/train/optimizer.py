"""SGD (paper section 4.1) or AdamW, with poly decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from cac_ext.train.config import OptimizerConfig

_ADAM_BETAS = (0.9, 0.99)


def build_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The configured optimizer over parameter groups, each with the key ``learning_rate``."""
    if not config.decay_norms_and_biases:
        groups = [part for group in groups for part in _by_dimensions(group)]
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "adamw":
        return AdamW(groups, lr=rate, betas=config.betas, weight_decay=decay)
    return SGD(groups, lr=rate, momentum=config.momentum, weight_decay=decay)


def build_adam(name: str, module: nn.Module, learning_rate: float) -> Optimizer:
    """Adam for a network that judges another one, such as a discriminator, as their authors use it.

    Its one parameter group has the given ``learning_rate``, which decays as that of all others.
    """
    group = {"name": name, "params": list(module.parameters()), "learning_rate": learning_rate}
    return Adam([group], lr=learning_rate, betas=_ADAM_BETAS)


def _by_dimensions(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group without its biases and scales, and these alone, without weight decay."""
    parameters = list(group["params"])
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    parts = [{**group, "params": weights}, {**group, "params": vectors, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def set_learning_rates(
    optimizers: Iterable[Optimizer], config: OptimizerConfig, iteration: int, iterations: int
) -> None:
    """Sets each group to ``learning_rate * (1 - iteration / iterations) ** power``; stateless."""
    decay = (1 - iteration / iterations) ** config.poly_power
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["learning_rate"] * decay
