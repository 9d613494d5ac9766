"""SGD with poly decay (paper section 4.1)."""

from __future__ import annotations

from torch.optim import SGD, Optimizer

from cac_ext.train.config import OptimizerConfig
from cac_ext.train.methods.step import TrainingModel


def build_optimizer(config: OptimizerConfig, model: TrainingModel) -> Optimizer:
    """SGD over all that is trained; the network's backbone at its own rate."""
    groups = model.network.parameter_groups(config.learning_rate, config.backbone_factor)
    for name, part in (("projector", model.projector), ("weak_classifier", model.weak_classifier)):
        parameters = [] if part is None else list(part.parameters())
        if parameters:
            rate = config.learning_rate
            groups.append({"name": name, "params": parameters, "learning_rate": rate})
    return SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


def set_learning_rate(
    optimizer: Optimizer, config: OptimizerConfig, iteration: int, iterations: int
) -> None:
    """``base * (1 - iteration / iterations) ** power`` for each group: no state to keep."""
    decay = (1 - iteration / iterations) ** config.poly_power
    for group in optimizer.param_groups:
        group["lr"] = group["learning_rate"] * decay
