"""Where scalars and pictures of a run go beside ``metrics.jsonl``: one interface, three services.

TensorBoard always; Weights & Biases and MLflow if ``run.trackers`` names them. Their server,
project or experiment is set as in other programs, by environment variables: ``WANDB_PROJECT``,
``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ... A resumed run continues its
entry there, whose name is in ``trackers.json`` of the run folder. Entries of an interrupted run
beyond its checkpoint stay, and are written again.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from cac_ext.train.config import Config, nearest, to_mapping
from cac_ext.train.errors import ConfigError
from cac_ext.train.runtime.json_files import read_json, write_json
from cac_ext.train.runtime.whole_files import naming

_FILE = "trackers.json"
_LONGEST_PARAMETER = 500  # characters that MLflow takes

#: RGB ``[H, W, 3]`` uint8.
Pixels = npt.NDArray[np.uint8]


class Tracker(Protocol):
    """Receives what a run logs."""

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Numbers by tag, such as ``train/loss``."""

    def picture(self, tag: str, pixels: Pixels, iteration: int) -> None:
        """A picture."""

    def close(self) -> None:
        """The run has ended, for now or for good."""


class TensorBoard:
    """Event files.

    Args:
        folder: of the files.
        start: first iteration; later entries, of an interrupted run, are not shown.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        with naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        with naming(self._folder):
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, iteration)

    def picture(self, tag: str, pixels: Pixels, iteration: int) -> None:
        with naming(self._folder):
            self._writer.add_image(tag, pixels, iteration, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._writer.close()


class Wandb:
    """Weights & Biases."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._wandb: Any = _package("wandb", "wandb")
        name = _entry(folder, "wandb", lambda: uuid.uuid4().hex)
        self._run = self._wandb.init(
            dir=str(folder),
            id=name,
            resume="allow",
            name=folder.name,
            config=to_mapping(config),
        )
        self._run.define_metric("*", step_metric="iteration")

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self._run.log({"iteration": iteration, **values})

    def picture(self, tag: str, pixels: Pixels, iteration: int) -> None:
        self._run.log({"iteration": iteration, tag: self._wandb.Image(pixels)})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow, without its global state: other code may use that."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._mlflow: Any = _package("mlflow", "mlflow")
        self._client = self._mlflow.MlflowClient()
        is_new = "mlflow" not in _entries(folder)
        self._run = _entry(folder, "mlflow", lambda: self._create(folder.name))
        self._client.update_run(self._run, status="RUNNING")
        if is_new:
            for key, value in _flat(to_mapping(config)).items():
                self._client.log_param(self._run, key, str(value)[:_LONGEST_PARAMETER])

    def _create(self, name: str) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self._client.get_experiment_by_name(wanted)
        number = (
            self._client.create_experiment(wanted)
            if experiment is None
            else experiment.experiment_id
        )
        return str(self._client.create_run(number, run_name=name).info.run_id)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        now = int(1000 * time.time())
        metric = self._mlflow.entities.Metric
        found = [metric(_allowed(tag), value, now, iteration) for tag, value in values.items()]
        self._client.log_batch(self._run, metrics=found)

    def picture(self, tag: str, pixels: Pixels, iteration: int) -> None:
        self._client.log_image(self._run, pixels, key=_allowed(tag), step=iteration)

    def close(self) -> None:
        self._client.set_terminated(self._run)


#: ``run.trackers`` -> what is opened.
TRACKERS: dict[str, Callable[[Path, Config], Tracker]] = {"mlflow": Mlflow, "wandb": Wandb}


def open_trackers(names: Sequence[str], folder: Path, config: Config) -> list[Tracker]:
    """The trackers that ``run.trackers`` names.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"run.trackers: there is no tracker {name!r}{nearest(name, TRACKERS)}; give "
                f"{', '.join(TRACKERS)}"
            )
    return [TRACKERS[name](folder, config) for name in names]


def _package(name: str, tracker: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"run.trackers: {tracker} needs pip install {name} ({error})") from error


def _entries(folder: Path) -> dict[str, str]:
    path = folder / _FILE
    return read_json(path) if path.exists() else {}


def _entry(folder: Path, tracker: str, create: Callable[[], str]) -> str:
    """The name of the run's entry in a service, made once and kept in the run folder."""
    entries = _entries(folder)
    if tracker not in entries:
        entries[tracker] = create()
        write_json(folder / _FILE, entries)
    return entries[tracker]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _allowed(tag: str) -> str:
    """The tag with the letters that MLflow takes: class names may hold others."""
    return re.sub(r"[^\w./ -]", "_", tag, flags=re.ASCII)
