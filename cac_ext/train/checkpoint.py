"""Checkpoints that are whole or not there, and hold all that an exact continuation needs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from cac_ext.train.config import Config, to_mapping
from cac_ext.train.errors import CheckpointError
from cac_ext.train.memory_bank import MemoryBank
from cac_ext.train.step import TrainingModel

_FORMAT = "cac_ext checkpoint 1"
#: Settings that may differ between a run and its continuation: they do not change the result.
_FREE_KEYS = ("name", "output", "data.num_workers", "data.root")


def save_checkpoint(
    path: Path,
    config: Config,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    bank: MemoryBank,
    iteration: int,
    results: dict[str, Any],
) -> None:
    """Writes the state after ``iteration`` steps; an earlier file stays until this one is whole.

    Order and augmentation need no state: they follow from the seed and the iteration
    (`seeding.py`). ``results`` are the latest evaluation's, plain values.
    """
    state = {
        "format": _FORMAT,
        "config": to_mapping(config),
        "iteration": iteration,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "bank": bank.state_dict(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
        "results": results,
    }
    temporary = path.with_suffix(".partial")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name itself survives a power cut
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, tensors on the CPU.

    Raises:
        CheckpointError: it is not there, damaged, or not a checkpoint of this package.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint written by this version of cac_ext")
    return state


def restore(
    state: dict[str, Any],
    path: Path,
    config: Config,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    bank: MemoryBank,
    device: torch.device,
) -> tuple[int, dict[str, Any]]:
    """Puts a checkpoint's state in place; returns its iteration and the latest results.

    Raises:
        CheckpointError: it belongs to a run with other settings.
    """
    differing = _differences(state["config"], to_mapping(config))
    if differing:
        raise CheckpointError(
            f"{path} belongs to a run with other settings: {'; '.join(differing)}. Continue it "
            "with its own configuration, or start anew in another folder"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    bank.load_state_dict(state["bank"], device)
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return state["iteration"], state["results"]


def _differences(saved: dict, current: dict, prefix: str = "") -> list[str]:
    """``key: saved value there, current value here`` for each setting that differs."""
    found = []
    for key in sorted(saved.keys() | current.keys()):
        full_key = f"{prefix}{key}"
        there, here = saved.get(key), current.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += _differences(there, here, f"{full_key}.")
        elif there != here and full_key not in _FREE_KEYS:
            found.append(f"{full_key} is {there} there and {here} here")
    return found
