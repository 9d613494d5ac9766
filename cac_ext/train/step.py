"""One training step: the phases of a method, each with a backward and an optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from cac_ext.train.methods.contract import Method, Phase, Step
from cac_ext.train.optimizer import set_learning_rates
from cac_ext.train.runs.checkpoint import TrainingState
from cac_ext.train.runs.nonfinite import NonFiniteGuard, parameters_of
from cac_ext.train.runtime.distributed import without_synchronization
from cac_ext.train.runtime.precision import autocast


def take_step(
    method: Method,
    state: TrainingState,
    batches: Sequence[Mapping[str, Any]],
    modules: Mapping[str, nn.Module],
    guard: NonFiniteGuard,
    device: torch.device,
) -> list[Phase]:
    """Take the step ``state.iteration`` and count it.

    Args:
        method: the training method.
        state: of the run.
        batches: the batch of each stream, on the device, for each part of the step.
        modules: the trained modules of the method, wrapped for training.
        guard: decides what happens if a number is not finite.
        device: of the modules.

    Returns:
        The phases whose optimizer stepped; none if the step was void.
    """
    config, iteration = state.config, state.iteration
    set_learning_rates(state.optimizers.values(), config.optimizer, iteration, config.iterations)
    parts = len(batches)
    guard.begin(iteration, batches[0] if parts == 1 else _numbered(batches))
    generators = [
        method.step(Step(iteration, of_part, modules, guard.proceeds, part, parts))
        for part, of_part in enumerate(batches)
    ]
    taken: list[Phase] = []
    # With parts, the gradients of a phase are averaged over the processes once, in front of its
    # optimizer step. DDP alone would do so in the backward of every part. To leave that to the last
    # part would be wrong in methods that run a module forward for a later phase: then the backward
    # of a part, not the last one, follows the last part's forward.
    with without_synchronization(modules.values()) if parts > 1 else nullcontext():
        while (phase := _next_phase(generators, state, device)) is not None:
            optimizer, scaler = state.optimizers[phase.optimizer], state.scalers[phase.optimizer]
            if parts > 1:
                method.context.processes.average_gradients(parameters_of(optimizer))
            clip_norm = config.optimizer.clip_norm
            if not guard.step_optimizer(optimizer, scaler, clip_norm):
                break
            taken.append(_with_norm(phase, guard.gradient_norm) if clip_norm else phase)
    if guard.end():
        method.after_step(iteration)
    state.iteration += 1
    return taken


def _next_phase(
    generators: Sequence[Iterator[Phase]], state: TrainingState, device: torch.device
) -> Phase | None:
    """The next phase of every part, after its backward; None if the step is over or void."""
    phases: list[Phase] = []
    for generator in generators:
        with autocast(state.config.run.precision, device):
            phase = next(generator, None)
        if phase is None:
            return None
        if not phases:
            state.optimizers[phase.optimizer].zero_grad(set_to_none=True)
        total = phase.total if len(generators) == 1 else phase.total / len(generators)
        state.scalers[phase.optimizer].scale(total).backward()
        phases.append(phase)
    return phases[0] if len(phases) == 1 else _mean(phases)


def _mean(phases: Sequence[Phase]) -> Phase:
    """One phase with the means of the parts' losses and metrics, for the log."""

    def mean(values: Sequence[Tensor | float]) -> Tensor | float:
        tensors = [value.detach().float() for value in values if isinstance(value, Tensor)]
        if tensors:
            return torch.stack(tensors).mean()
        return fmean(float(value) for value in values)

    first = phases[0]
    return replace(
        first,
        total=torch.stack([phase.total.detach() for phase in phases]).mean(),
        losses={
            name: torch.stack([phase.losses[name].detach() for phase in phases]).mean()
            for name in first.losses
        },
        metrics={name: mean([phase.metrics[name] for phase in phases]) for name in first.metrics},
    )


def _with_norm(phase: Phase, norm: Tensor | None) -> Phase:
    """The phase with the norm of its gradient among the metrics."""
    if norm is None:
        return phase
    name = "gradient_norm"
    if phase.optimizer != "network":
        name = f"{name}_{phase.optimizer}"
    return replace(phase, metrics={**phase.metrics, name: norm})


def _numbered(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The batches of all parts, to be kept if the step is not finite."""
    return {
        f"{name} {part}": batch
        for part, of_part in enumerate(batches)
        for name, batch in of_part.items()
    }
