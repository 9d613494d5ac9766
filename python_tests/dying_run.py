"""A training that kills itself at a step, to test the resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

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
