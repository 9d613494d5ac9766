"""Checkpoints that are whole or not there, and hold all that an exact continuation needs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cac_ext.train.config import Config, to_mapping
from cac_ext.train.distributed import ALONE, Processes
from cac_ext.train.errors import CheckpointError
from cac_ext.train.files import read_saved, write_whole
from cac_ext.train.memory_bank import MemoryBank
from cac_ext.train.step import TrainingModel

_FORMAT = "cac_ext checkpoint 2"
#: Settings that may differ between a run and its continuation: they do not change the result.
_FREE_KEYS = ("name", "output", "data.num_workers", "data.root", "data.max_image_pixels")
#: Folders that may have been moved; whether there is one does change the result.
_MOVABLE_KEYS = ("weak.pseudo_labels", "self_training.pseudo_labels")


def save_checkpoint(
    path: Path,
    config: Config,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    bank: MemoryBank,
    iteration: int,
    results: dict[str, Any],
    processes: Processes = ALONE,
) -> None:
    """Writes the state after ``iteration`` steps; an earlier file stays until this one is whole.

    Order and augmentation need no state: they follow from the seed and the iteration
    (`seeding.py`). The bank is the same in every process; of the random states, each process's is
    kept. All processes call this, rank 0 writes. ``results`` are the latest evaluation's, plain
    values.

    Raises:
        CheckpointError: it cannot be written; an earlier one is kept.
    """
    random = processes.gather(_random_state())
    if not processes.is_main:
        return
    state = {
        "format": _FORMAT,
        "config": to_mapping(config),
        "iteration": iteration,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "bank": bank.state_dict(),
        "random": random,
        "results": results,
    }
    kept = "; the earlier checkpoint is kept" if path.exists() else ""
    try:
        write_whole(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:  # torch's writer turns some OSErrors into the other
        raise CheckpointError(
            f"cannot write the checkpoint {path} after iteration {iteration}: {error}{kept}. Make "
            f"room for it and go on with `cac-ext resume {path.parent}`"
        ) from error


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's own GPU
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, tensors on the CPU.

    Raises:
        CheckpointError: it is not there, damaged, or not a checkpoint of this package.
    """
    return read_saved(path, _FORMAT, "checkpoint")


def restore(
    state: dict[str, Any],
    path: Path,
    config: Config,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    bank: MemoryBank,
    device: torch.device,
    processes: Processes = ALONE,
) -> tuple[int, dict[str, Any]]:
    """Puts a checkpoint's state in place; returns its iteration and the latest results.

    Raises:
        CheckpointError: it belongs to a run with other settings, or another network.

    Warns:
        UserWarning: it was written by another number of processes.
    """
    require_same_settings(state["config"], config, path)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit the network: {error}") from error
    scaler.load_state_dict(state["scaler"])
    bank.load_state_dict(state["bank"], device)
    if len(state["random"]) == processes.size:
        random = state["random"][processes.rank]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"])
    else:
        warnings.warn(
            f"{path} was written by {len(state['random'])} process(es) and goes on with "
            f"{processes.size}: dropout and rounding will differ from those of an unbroken run",
            stacklevel=2,
        )
    return state["iteration"], state["results"]


def require_same_settings(saved: dict[str, Any], config: Config, path: Path) -> None:
    """CheckpointError where a continuation's settings would change the result of the run.

    Args:
        saved: the run's settings, as `to_mapping` gives them.
        config: the continuation's.
        path: of the file that ``saved`` comes from.
    """
    differing = _differences(saved, to_mapping(config))
    if differing:
        raise CheckpointError(
            f"{path} belongs to a run with other settings: {'; '.join(differing)}. Continue it "
            "with its own configuration, or start anew in another folder. Only "
            f"{', '.join(_FREE_KEYS)} may differ, and where pseudo labels lie"
        )


def _differences(saved: dict, current: dict, prefix: str = "") -> list[str]:
    """``key: saved value there, current value here`` for each setting that differs."""
    found = []
    for key in sorted(saved.keys() | current.keys()):
        full_key = f"{prefix}{key}"
        there, here = saved.get(key), current.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += _differences(there, here, f"{full_key}.")
        elif full_key in _MOVABLE_KEYS and there and here:
            continue
        elif there != here and full_key not in _FREE_KEYS:
            found.append(f"{full_key} is {there} there and {here} here")
    return found
