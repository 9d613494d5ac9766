"""A training that kills itself at a step, and the promise of its resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
from run_folders import assert_same_run

from cac_ext.train import loop
from cac_ext.train.config import load
from cac_ext.train.loop import train
from cac_ext.train.methods import Method
from cac_ext.train.runs.checkpoint import TrainingState
from cac_ext.train.runtime.distributed import process_group


def train_until(overrides: list[str], folder: Path, dies_at: int | None = None) -> None:
    """Trains on the built-in data, or resumes; SIGKILL before step ``dies_at``."""
    take_step = loop.take_step

    def dying(method: Method, state: TrainingState, *rest: Any) -> Any:
        if state.iteration == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(method, state, *rest)

    loop.take_step = dying
    try:
        config = load("synthetic", overrides)
        with process_group(config.device):
            train(config, folder, resume=True, progress=False)
    finally:
        loop.take_step = take_step


def assert_resumes_bit_for_bit(
    overrides: list[str], folder: Path, run: Callable[..., None] = train_until
) -> None:
    """``run``, killed before its sixth step and run again, equals an unbroken one.

    The runs are ``broken`` and ``whole`` below ``folder``. ``run`` takes what `train_until` takes.
    """
    child = processes.start(run, overrides, folder / "broken", 5)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    run(overrides, folder / "broken")
    run(overrides, folder / "whole")
    assert_same_run(folder / "whole", folder / "broken")
