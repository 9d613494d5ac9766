"""Steps whose loss or gradient is nan or infinite: keep the batch and stop, or skip the step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cac_ext.train.config import RunConfig
from cac_ext.train.data.batches import to_plain
from cac_ext.train.errors import NonFiniteError
from cac_ext.train.runtime.distributed import Processes
from cac_ext.train.runtime.whole_files import write_whole

#: After so many skipped steps in a row the run stops: the fault is not a single batch.
_MOST_SKIPPED = 20


class NonFiniteGuard:
    """Keeps non-finite steps out of the weights, the batch statistics and the bank.

    To learn at once whether a number is finite, the host must wait for the device. On a CPU this
    costs nothing. On a GPU it would cost time in every step, so with ``nonfinite=stop`` the answer
    is fetched while the next step is prepared: the run ends one step later, and the right batch is
    kept. (``run.precision=fp16`` waits in any case, because its loss scale depends on the answer.)

    Args:
        config: ``nonfinite`` chooses between stopping and skipping.
        folder: of the run; receives the batch.
        modules: all modules of the method, by name.
        processes: this process among those of the run.
        late: whether the answer may come a step late.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        modules: Mapping[str, nn.Module],
        processes: Processes,
        *,
        late: bool = False,
    ) -> None:
        self._skip = config.nonfinite == "skip"
        self._late = late and not self._skip
        self._folder = folder
        self._modules = modules
        self._processes = processes
        self._buffers: list[Tensor] = []
        self._in_a_row = 0
        self._step: tuple[int, Mapping[str, Any]] = (0, {})  # iteration, batches
        self._finite = True  # so far in this step
        self._answers: list[Tensor] = []  # scalar bools of this step, on the device
        self.gradient_norm: Tensor | None = None  # of the latest optimizer step that clips
        self._pending: tuple[int, Mapping[str, Any], Tensor, torch.cuda.Event | None] | None = None

    def begin(self, iteration: int, batches: Mapping[str, Any]) -> None:
        """Starts a step. Call it before the forward pass, which changes batch statistics.

        Raises:
            NonFiniteError: the previous step was not finite.
        """
        self.settle()
        self._step, self._finite, self._answers = (iteration, batches), True, []
        if self._skip:
            self._buffers = [buffer.clone() for buffer in self._all_buffers()]

    def proceeds(self, finite: Tensor) -> bool:
        """Whether the step may continue; ``finite``: scalar bool, of this process's outputs."""
        if self._late:
            self._answers.append(finite)
        else:
            self._finite = self._finite and not self._processes.any(not finite)
        return self._finite

    def step_optimizer(
        self,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        clip_norm: float | None = None,
    ) -> bool:
        """Steps the optimizer if all gradients are finite; returns whether they are.

        Under DDP the gradients, and so the answer, are the same in all processes. With
        ``clip_norm`` a longer gradient is scaled down to it; `gradient_norm` is the norm before.
        """
        parameters = parameters_of(optimizer)
        if scaler.is_enabled():
            if clip_norm is not None:
                scaler.unscale_(optimizer)
                self.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            self._finite = _step_scaled(scaler, optimizer)
            return self._finite
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if clip_norm is not None:
            self.gradient_norm = norm
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        finite = norm.isfinite()
        if self._late:
            self._answers.append(finite)
        else:
            self._finite = bool(finite)
        if self._finite:
            optimizer.step()
        return self._finite

    def end(self) -> bool:
        """Ends a step, in all processes; returns whether the step counts.

        Raises:
            NonFiniteError: the run must stop; each process has kept its batch if there is space.
        """
        iteration, batches = self._step
        if self._answers:
            flags = torch.stack([answer.detach() for answer in self._answers])
            everywhere = self._processes.sum((~flags).any().int()) == 0
            event = None
            if everywhere.is_cuda:
                everywhere = everywhere.to("cpu", non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            self._pending = (iteration, batches, everywhere, event)
        if self._finite:
            self._in_a_row = 0
        else:
            self._failed(iteration, batches)
        return self._finite

    def settle(self) -> None:
        """Waits for a late answer. Call it before the weights are saved or evaluated.

        Raises:
            NonFiniteError: the latest step was not finite.
        """
        if self._pending is None:
            return
        iteration, batches, finite, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        if not finite:
            self._failed(iteration, batches)

    def _failed(self, iteration: int, batches: Mapping[str, Any]) -> None:
        self._in_a_row += 1
        if self._skip and self._in_a_row <= _MOST_SKIPPED:
            for buffer, earlier in zip(self._all_buffers(), self._buffers, strict=True):
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
            "batches": {name: to_plain(batch) for name, batch in batches.items()},
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
        }
        kept = f"are saved in {path} (read them with torch.load)"
        try:
            write_whole(path, lambda file: torch.save(state, file))
        except (OSError, RuntimeError) as error:  # torch turns some OSErrors into RuntimeErrors
            kept = f"could not be saved in {path} ({error})"
        repeated = f", as in the {_MOST_SKIPPED} steps before" if self._skip else ""
        advice = "" if self._skip else ", or run.nonfinite=skip to skip single steps"
        raise NonFiniteError(
            f"loss or gradient of iteration {iteration} is not finite{repeated}. Batch and weights "
            f"{kept}; the run's checkpoint is unchanged. Try a lower optimizer.learning_rate, "
            f"run.precision=bf16 or fp32{advice}"
        )

    def _all_buffers(self) -> list[Tensor]:
        return [buffer for module in self._modules.values() for buffer in module.buffers()]


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimizer, of all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _step_scaled(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> bool:
    """A step with loss scaling; False if a lower scale cannot help.

    If a gradient overflows in fp16, the scaler skips the step and halves the scale. The first steps
    of a run do so until the scale fits. A gradient that is not finite at a scale below 1 has not
    overflowed: it would be skipped forever.
    """
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped = scaler.get_scale() < before
    return not (skipped and scaler.get_scale() < 1)
