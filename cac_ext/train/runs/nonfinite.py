"""A step whose loss or gradient is nan or infinite: stop with the batch kept, or skip it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cac_ext.train.config import RunConfig
from cac_ext.train.errors import NonFiniteError
from cac_ext.train.runtime.distributed import Processes
from cac_ext.train.runtime.whole_files import write_whole

#: Skipped steps in a row after which it is no accident any more.
_MOST_SKIPPED = 20


class NonFiniteGuard:
    """Keeps steps that are not finite away from the weights, the statistics and the bank.

    Args:
        config: ``nonfinite`` says what to do.
        folder: of the run; where the batch is kept.
        model: in training.
    """

    def __init__(
        self, config: RunConfig, folder: Path, model: nn.Module, processes: Processes
    ) -> None:
        self._skip = config.nonfinite == "skip"
        self._folder = folder
        self._model = model
        self._processes = processes
        self._buffers: list[Tensor] = []
        self._in_a_row = 0

    def before(self) -> None:
        """Call it before a step's forward, which changes batch statistics."""
        if self._skip:
            self._buffers = [buffer.clone() for buffer in self._model.buffers()]

    def passed(self) -> None:
        """Call it after a finite step."""
        self._in_a_row = 0

    def failed(
        self, iteration: int, labelled: dict[str, Tensor], pairs: dict[str, Tensor] | None
    ) -> None:
        """Call it instead of the optimiser's step, in all processes.

        Raises:
            NonFiniteError: the run is to stop; each process has kept its batch, room given.
        """
        self._in_a_row += 1
        if self._skip and self._in_a_row <= _MOST_SKIPPED:
            for buffer, earlier in zip(self._model.buffers(), self._buffers, strict=True):
                buffer.copy_(earlier)
            if self._processes.is_main:
                warnings.warn(
                    f"loss or gradient of iteration {iteration} is not finite: skipped",
                    stacklevel=2,
                )
            return
        path = self._folder / f"nonfinite-{iteration}-rank{self._processes.rank}.pt"
        state = {
            "iteration": iteration,
            "labelled": labelled,
            "pairs": pairs,
            "model": self._model.state_dict(),
        }
        kept = f"are kept in {path} (torch.load)"
        try:
            write_whole(path, lambda file: torch.save(state, file))
        except (OSError, RuntimeError) as error:  # torch's writer turns some OSErrors into these
            kept = f"could not be kept in {path} ({error})"
        repeated = f", as in {_MOST_SKIPPED} steps before it" if self._skip else ""
        advice = "" if self._skip else ", or run.nonfinite=skip to leave out single steps"
        raise NonFiniteError(
            f"loss or gradient of iteration {iteration} is not finite{repeated}. Batch and weights "
            f"{kept}, the run's checkpoint is as it was. Try a lower "
            f"optimizer.learning_rate, run.precision=bf16 or fp32{advice}"
        )


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether all gradients are; under DDP the answer is the same in all processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def step_scaled(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """A step with loss scaling; False where lower scales help no more.

    A gradient that overflows in fp16 makes the scaler skip the step and halve the scale, as the
    first steps of a run do until the scale fits. One that is nan or infinite at a scale below 1
    does not overflow: it is so by itself, and would be skipped for ever.
    """
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped = scaler.get_scale() < before
    return not (skipped and scaler.get_scale() < 1)
