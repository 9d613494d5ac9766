"""Run folders: created with a configuration; read back with configuration, classes, network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from cac_ext.train.config import Config, load, to_yaml
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.classes import Classes, load_classes
from cac_ext.train.errors import CheckpointError, ConfigError, listed
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.networks.normalization import Normalization
from cac_ext.train.runs.checkpoint import read_network
from cac_ext.train.runtime.distributed import find_device
from cac_ext.train.runtime.whole_files import write_text_whole

#: Settings of a finished run that may change: the data, how the network sees images, its device and
#: arithmetic.
_FREE = ("data.", "evaluation.", "run.precision=", "device=")
#: Settings of the data that belong to the network.
_OF_THE_NETWORK = ("data.channels=", "data.mean=", "data.std=")
CONFIG_FILE = "config.yaml"
CHECKPOINT_FILE, BEST_FILE = "checkpoint.pt", "best.pt"


@dataclass(frozen=True)
class Run:
    """A trained run, from `load_run`.

    Attributes:
        config: of the run; ``config.device`` and ``config.data`` may have been changed.
        classes: names, colors and the id of ignored pixels.
        network: in evaluation mode, on the device of the configuration.
        iteration: the number of steps that the network has seen.
        folder: of the run.
        best: whether it is the network of the highest validation mIoU, not the last one.
    """

    config: Config
    classes: Classes
    network: SegmentationNetwork
    iteration: int
    folder: Path
    best: bool = False


def new_folder(output: str, name: str) -> Path:
    """``OUTPUT/NAME-DATE-TIME``, with a number behind it if that exists."""
    base = Path(output).expanduser() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Creates the folder and writes ``config.yaml``; ConfigError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_whole(folder / CONFIG_FILE, to_yaml(config))
    except OSError as error:
        raise ConfigError(
            f"cannot write into the run folder {folder}: {error}. Choose another folder with "
            "--folder or output=..."
        ) from error


def run_exists(folder: Path) -> CheckpointError:
    """The error of a run that would overwrite another one."""
    return CheckpointError(
        f"{folder} already holds a run: choose another folder, or continue that run with "
        f"`cac-ext resume {folder}`"
    )


def read_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a run folder; ConfigError if the folder holds none."""
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{folder} is no run folder: it holds no {CONFIG_FILE}. Give a folder that "
            "`cac-ext train` wrote"
        )
    return load(str(folder / CONFIG_FILE), overrides)


def load_run(
    folder: str | Path,
    overrides: Sequence[str] = (),
    free: Sequence[str] = (),
    *,
    best: bool = False,
) -> Run:
    """A run with its network, read from its folder. The data of the run may be missing.

    Args:
        folder: of the run.
        overrides: ``key=value`` for data.*, evaluation.*, run.precision, device and the keys in
            ``free``: ``["device=cpu"]``.
        free: further keys that do not affect the training.
        best: take the network of the highest validation mIoU, which ``run.keep_best`` keeps; by
            default, the last one.

    Raises:
        ConfigError: the folder is no run folder, or an override affects the training.
        CheckpointError: the checkpoint is missing, damaged or of another network.
    """
    folder = Path(folder)
    for override in overrides:
        if not override.startswith(_FREE) and override.partition("=")[0] not in free:
            allowed = ", ".join(["data.*", "evaluation.*", "run.precision", *free])
            raise ConfigError(
                f"{override}: of a finished run only {allowed} and device can be changed"
            )
        if override.startswith(_OF_THE_NETWORK):
            raise ConfigError(
                f"{override}: the network has been trained with the run's own, see {CONFIG_FILE}"
            )
    config = read_config(folder, overrides)
    classes = load_classes(folder)
    path = folder / (BEST_FILE if best else CHECKPOINT_FILE)
    if best and not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {BEST_FILE}: train with run.keep_best=true, or take the last "
            "network"
        )
    trained = read_network(path)
    network = build_network(
        config.network,
        classes.num_classes,
        pretrained=False,
        normalization=Normalization.of(config.data),
    )
    try:
        network.load_state_dict(trained.weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {config.network.name}: {error}") from error
    network = network.to(find_device(config.device)).eval()
    if config.run.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return Run(config, classes, network, trained.iteration, folder, best)


def start_from(network: SegmentationNetwork, trained: Path) -> None:
    """Gives a network the weights of a trained run; ``network.initial_weights`` says so.

    If the classifiers have different shapes, that of the network stays as it is.

    Args:
        network: as it was built.
        trained: a run folder, or a checkpoint or ``best.pt`` in one.

    Raises:
        ConfigError: the run has another network.
        CheckpointError: there is no trained network.
    """
    path = trained / CHECKPOINT_FILE if trained.is_dir() else trained
    found = read_network(path)
    own, weights = network.state_dict(), dict(found.weights)
    text = f"weights of {trained} (iteration {found.iteration})"
    classifier = [name for name in own if name.startswith("classifier.")]
    theirs = [name for name in weights if name.startswith("classifier.")]
    if [own[name].shape for name in classifier] != [weights[name].shape for name in theirs]:
        for name in theirs:
            del weights[name]
        weights |= {name: own[name] for name in classifier}
        text += ", but a new classifier, because the number of classes differs"
    unlike = [
        name
        for name in sorted(own.keys() | weights.keys())
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    if unlike:
        raise ConfigError(
            f"network.start_from: {path} holds another network than the configured one: "
            f"{listed(unlike)} differ. Set network.* as in the run, see its {CONFIG_FILE}"
        )
    network.load_state_dict(weights)
    network.initial_weights = text


def require_same_classes(run: Run, splits: DatasetSplits) -> None:
    """ConfigError if the data has other classes than those that the run was trained on."""
    if list(splits.class_names) != list(run.classes.class_names):
        raise ConfigError(
            f"the run was trained on the classes {', '.join(run.classes.class_names)}, but the "
            f"data has {', '.join(splits.class_names)}: give data of the same classes by data.*"
        )
