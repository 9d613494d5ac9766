"""A finished or interrupted run, read again: its configuration, classes and network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_ext.train.checkpoint import read_checkpoint
from cac_ext.train.config import Config, load
from cac_ext.train.data.classes import Classes, load_classes
from cac_ext.train.distributed import find_device
from cac_ext.train.errors import CheckpointError, ConfigError
from cac_ext.train.networks import SegmentationNetwork, build_network

#: What may differ from the run: where the data lies and where to compute, not what was trained.
_FREE = ("data.", "device=")
_NETWORK = "network."


@dataclass(frozen=True)
class Run:
    """A run's network, in evaluation mode and on the device of its configuration."""

    config: Config
    classes: Classes
    network: SegmentationNetwork
    iteration: int


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Run:
    """Reads a run folder. Its data need not be there.

    Raises:
        ConfigError: it is no run folder, or an override would change what was trained.
        CheckpointError: its checkpoint is missing, damaged or another network's.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is no run folder: it holds no config.yaml")
    for override in overrides:
        if not override.startswith(_FREE):
            raise ConfigError(
                f"{override}: of a finished run only data.* and device can be set anew"
            )
    config = load(str(folder / "config.yaml"), overrides)
    classes = load_classes(folder)
    path = folder / "checkpoint.pt"
    state = read_checkpoint(path)
    network = build_network(config.network, classes.num_classes, pretrained=False)
    weights = {
        name.removeprefix(_NETWORK): tensor
        for name, tensor in state["model"].items()
        if name.startswith(_NETWORK)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {config.network.name}: {error}") from error
    return Run(config, classes, network.to(find_device(config.device)).eval(), state["iteration"])
