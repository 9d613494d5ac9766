"""One training step: the phases of a method, each with a backward and an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cac_ext.train.methods.contract import Method, Phase, Step
from cac_ext.train.optimizer import set_learning_rates
from cac_ext.train.runs.checkpoint import TrainingState
from cac_ext.train.runs.nonfinite import NonFiniteGuard
from cac_ext.train.runtime.precision import autocast


def take_step(
    method: Method,
    state: TrainingState,
    batches: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    guard: NonFiniteGuard,
    device: torch.device,
) -> list[Phase]:
    """Take the step ``state.iteration`` and count it.

    Args:
        method: the training method.
        state: of the run.
        batches: the batch of each stream, on the device.
        modules: the trained modules of the method, wrapped for training.
        guard: decides what happens if a number is not finite.
        device: of modules and batches.

    Returns:
        The phases whose optimizer stepped; none if the step was void.
    """
    config, iteration = state.config, state.iteration
    set_learning_rates(state.optimizers.values(), config.optimizer, iteration, config.iterations)
    guard.begin(iteration, batches)
    phases = method.step(Step(iteration, batches, modules, guard.proceeds))
    taken: list[Phase] = []
    while True:
        with autocast(config.run.precision, device):
            phase = next(phases, None)
        if phase is None:
            break
        optimizer = state.optimizers[phase.optimizer]
        scaler = state.scalers[phase.optimizer]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(phase.total).backward()
        if not guard.step_optimizer(optimizer, scaler):
            break
        taken.append(phase)
    if guard.end():
        method.after_step(iteration)
    state.iteration += 1
    return taken
