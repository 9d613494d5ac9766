"""Checkpoints: whole or absent, with everything that an exact resume needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cac_ext.train.config import Config, to_mapping
from cac_ext.train.errors import CheckpointError
from cac_ext.train.runtime.distributed import ALONE, Processes
from cac_ext.train.runtime.whole_files import read_saved, write_whole

_FORMAT = "cac_ext checkpoint 3"
_NETWORK_FORMAT = "cac_ext network 1"
#: Settings that may change at a resume, because they do not change what is learned.
_FREE_KEYS = (
    "name",
    "output",
    "data.num_workers",
    "data.root",
    "data.max_image_pixels",
    "schedule.log_every",
    "evaluation.window",
    "evaluation.window_memory",
    "schedule.patience",
    "run.trackers",
)
#: Settings that change the result by rounding alone.
_ROUNDING_KEYS = ("device", "run.compile", "run.channels_last", "run.max_gathered_negatives")
#: Files and folders that may have moved; setting one or removing it does change the result.
_MOVABLE_KEYS = (
    "weak.pseudo_labels",
    "self_training.pseudo_labels",
    "network.weights",
    "network.start_from",
)


class Stateful(Protocol):
    """Something with state besides its modules and optimizers: a method."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None: ...


@dataclass(frozen=True)
class Best:
    """The evaluation with the highest mIoU so far; of equal ones the first.

    Attributes:
        iteration: when it was.
        miou: in [0, 1]; nan only if every evaluation so far gave nan.
        worse_since: evaluations after it.
    """

    iteration: int
    miou: float
    worse_since: int = 0

    @staticmethod
    def after(best: Best | None, iteration: int, miou: float) -> Best:
        """The best evaluation after one more."""
        if best is None or miou > best.miou or (math.isnan(best.miou) and not math.isnan(miou)):
            return Best(iteration, miou)
        return Best(best.iteration, best.miou, best.worse_since + 1)


@dataclass
class TrainingState:
    """The whole state of a run at an iteration, except what follows from its seed.

    Attributes:
        config: of the run.
        modules: all modules of the method, by name.
        optimizers: by the names that the method's phases use.
        scalers: of the loss, one for each optimizer; enabled for fp16 only.
        method: holds all other state.
        iteration: number of steps taken.
        results: of the latest evaluation, plain values.
        evaluated_at: iteration of that evaluation.
        best: the best evaluation; None before the first.
    """

    config: Config
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    scalers: Mapping[str, torch.amp.GradScaler]
    method: Stateful
    iteration: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    evaluated_at: int = 0
    best: Best | None = None

    def part_of(self, network: nn.Module) -> str:
        """The prefix of the names of the network's weights among those of the modules.

        Raises:
            ValueError: the network is neither one of the modules nor inside one.
        """
        for name, module in self.modules.items():
            for inner_name, inner in module.named_modules():
                if inner is network:
                    return f"{name}.{inner_name}." if inner_name else f"{name}."
        raise ValueError(
            "the network that Method.evaluated returns is not among the method's modules: add it "
            "to Method.trained or Method.kept"
        )


def save_checkpoint(
    path: Path, state: TrainingState, network: nn.Module, processes: Processes = ALONE
) -> None:
    """Writes the state of a run; an earlier file stays until the new one is whole.

    Order and augmentation need no state: they follow from the seed and the iteration
    (`seeding.py`). The state of the method is that of rank 0; random states are saved for each
    process. All processes call this, rank 0 writes.

    Args:
        path: of the file.
        state: of the run.
        network: the evaluated one; `weights_of_network` finds its weights in the file.
        processes: this process among those of the run.

    Raises:
        CheckpointError: the file cannot be written; an earlier one is kept.
    """
    random = processes.gather(_random_state())
    of_method = state.method.state_dict()  # in every process: it may be spread over them
    if not processes.is_main:
        return
    saved = {
        "format": _FORMAT,
        "config": to_mapping(state.config),
        "device": next(network.parameters()).device.type,
        "iteration": state.iteration,
        "modules": _state_dicts(state.modules),
        "network": state.part_of(network),
        "optimizers": _state_dicts(state.optimizers),
        "scalers": _state_dicts(state.scalers),
        "method": of_method,
        "random": random,
        "results": state.results,
        "evaluated_at": state.evaluated_at,
        "best": None if state.best is None else asdict(state.best),
    }
    _write(path, saved, "checkpoint", state.iteration)


def save_network(path: Path, state: TrainingState, network: nn.Module) -> None:
    """Writes the weights of the evaluated network alone, with the results of this iteration.

    Raises:
        CheckpointError: the file cannot be written; an earlier one is kept.
    """
    saved = {
        "format": _NETWORK_FORMAT,
        "iteration": state.iteration,
        "results": state.results,
        "weights": network.state_dict(),
    }
    _write(path, saved, "network", state.iteration)


def _write(path: Path, saved: dict[str, Any], what: str, iteration: int) -> None:
    kept = f"; the earlier {what} is kept" if path.exists() else ""
    try:
        write_whole(path, lambda file: torch.save(saved, file))
    except (OSError, RuntimeError) as error:  # torch turns some OSErrors into RuntimeErrors
        raise CheckpointError(
            f"cannot write the {what} {path} after iteration {iteration}: {error}{kept}. "
            f"Free some disk space and continue with `cac-ext resume {path.parent}`"
        ) from error


def _state_dicts(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def weights_of_network(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the evaluated network in a checkpoint, by their names in the network."""
    module, _, inner = saved["network"].partition(".")
    weights = saved["modules"][module]
    return {
        name.removeprefix(inner): weight
        for name, weight in weights.items()
        if name.startswith(inner)
    }


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's GPU
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, with tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint of this package.
    """
    return read_saved(path, (_FORMAT,), "checkpoint")


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of an evaluated network by name, and the number of steps that it has seen."""

    weights: Mapping[str, Tensor]
    iteration: int


def read_network(path: Path) -> TrainedWeights:
    """The evaluated network in a checkpoint, or in a file of `save_network`.

    Raises:
        CheckpointError: the file is missing, damaged, or neither of the two.
    """
    saved = read_saved(path, (_FORMAT, _NETWORK_FORMAT), "network")
    weights = saved["weights"] if saved["format"] == _NETWORK_FORMAT else weights_of_network(saved)
    return TrainedWeights(weights, saved["iteration"])


def restore(
    saved: dict[str, Any],
    path: Path,
    state: TrainingState,
    device: torch.device,
    processes: Processes = ALONE,
    *,
    extend: bool = False,
) -> None:
    """Loads the contents of a checkpoint into ``state``.

    With ``extend``, a run that has taken all its epochs may get more.

    Raises:
        CheckpointError: the checkpoint belongs to a run with other settings or another network.

    Warns:
        UserWarning: the checkpoint was written by another number of processes, on another kind of
            device, or with settings that change the rounding.
    """
    settings = saved["config"]
    if extend:
        settings = with_more_epochs(settings, state.config, saved["iteration"])
    require_same_settings(settings, state.config, path)
    _warn_of_rounding(saved, path, state.config, device)
    try:
        for parts, kind in (
            (state.modules, "modules"),
            (state.optimizers, "optimizers"),
            (state.scalers, "scalers"),
        ):
            if parts.keys() != saved[kind].keys():
                raise ValueError(
                    f"it holds the {kind} {', '.join(saved[kind])}, but the method has "
                    f"{', '.join(parts)}"
                )
            for name, part in parts.items():
                part.load_state_dict(saved[kind][name])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit the network: {error}") from error
    state.method.load_state_dict(saved["method"], device)
    if len(saved["random"]) == processes.size:
        random = saved["random"][processes.rank]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"])
    else:
        warnings.warn(
            f"{path} was written by {len(saved['random'])} process(es) and resumes with "
            f"{processes.size}: dropout and rounding will differ from those of an unbroken run",
            stacklevel=2,
        )
    state.iteration, state.results = saved["iteration"], saved["results"]
    state.evaluated_at = saved["evaluated_at"]
    best = saved.get("best")  # earlier versions did not save it
    state.best = None if best is None else Best(**best)


def with_more_epochs(saved: dict[str, Any], config: Config, iteration: int) -> dict[str, Any]:
    """A run's settings with the epochs of ``config``, if it has taken all its own and gets more.

    Args:
        saved: the run's settings, from `to_mapping`.
        config: the settings at the resume.
        iteration: of the run's checkpoint.
    """
    schedule = saved["schedule"]
    ended = iteration == schedule["epochs"] * schedule["iterations_per_epoch"]
    if not ended or config.schedule.epochs <= schedule["epochs"]:
        return saved
    return {**saved, "schedule": {**schedule, "epochs": config.schedule.epochs}}


def _warn_of_rounding(
    saved: dict[str, Any], path: Path, config: Config, device: torch.device
) -> None:
    """Warns if the resumed run rounds differently from the run that wrote the checkpoint."""
    there = saved["device"]
    changes = (
        [] if there == device.type else [f"the device is {there} there and {device.type} here"]
    )
    changes += [
        change
        for change in _differences(_completed(saved["config"]), to_mapping(config), rounding=True)
        if not change.startswith("device ")
    ]
    if changes:
        warnings.warn(
            f"{path} was written under other conditions ({', '.join(changes)}): from here on the "
            "results differ by rounding from those of an unbroken run",
            stacklevel=3,
        )


def require_same_settings(saved: dict[str, Any], config: Config, path: Path) -> None:
    """CheckpointError if other settings at the resume would change the result of the run.

    Args:
        saved: the run's settings, from `to_mapping`.
        config: the settings at the resume.
        path: of the file that ``saved`` comes from.
    """
    differing = _differences(_completed(saved), to_mapping(config))
    if differing:
        epochs = any(difference.startswith("schedule.epochs ") for difference in differing)
        raise CheckpointError(
            f"{path} belongs to a run with other settings: {'; '.join(differing)}. Resume it with "
            "its own configuration, or start a new run in another folder. Only "
            f"{', '.join((*_FREE_KEYS, *_ROUNDING_KEYS))} and the paths of pseudo labels and "
            "pretrained weights may differ"
            + (". A run that has taken all its epochs can be given more of them" if epochs else "")
        )


def _completed(saved: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Any:
    """Saved settings with the defaults of settings that came later: a new one changes nothing."""
    complete = dict(to_mapping(Config()) if defaults is None else defaults)
    for key, value in saved.items():
        inner = complete.get(key)
        both = isinstance(value, dict) and isinstance(inner, dict)
        complete[key] = _completed(value, inner) if both else value
    return complete


def _differences(
    saved: dict[str, Any], current: dict[str, Any], prefix: str = "", *, rounding: bool = False
) -> list[str]:
    """``key is saved value there and current value here`` for each setting that differs.

    Covers the settings that change the result, or with ``rounding`` those that change its rounding.
    """
    found = []
    for key in sorted(saved.keys() | current.keys()):
        full_key = f"{prefix}{key}"
        there, here = saved.get(key), current.get(key)
        if there is None and isinstance(here, dict):  # a section that is newer than the run
            there = {}
        if isinstance(there, dict) and isinstance(here, dict):
            found += _differences(there, here, f"{full_key}.", rounding=rounding)
        elif there == here or (full_key in _MOVABLE_KEYS and there and here):
            continue
        elif (full_key in _ROUNDING_KEYS) == rounding and full_key not in _FREE_KEYS:
            found.append(f"{full_key} is {there} there and {here} here")
    return found
