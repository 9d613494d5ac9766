"""``environment.json``: on what a run was trained, an entry for each session."""

from __future__ import annotations

import platform
import sys
from datetime import datetime
from pathlib import Path
from typing import TypedDict

import torch

import cac_ext
from cac_ext.train.runtime.json_files import read_json, write_json

ENVIRONMENT_FILE = "environment.json"
#: Modules whose versions are recorded if the training has imported them.
_PACKAGES = ("torchvision", "numpy", "PIL", "timm")


class Session(TypedDict):
    """A training from its start, or from a resume, up to the next resume.

    Attributes:
        from_iteration: number of steps taken before.
        began: local time in ISO 8601.
        device: ``cpu``, ``cuda:0``, ...
        processor: model of the GPU, or of the processor if the device is one.
        processes: number of processes.
        threads: of torch, in each process.
        kernels: instruction set that the loss uses on a processor.
        cuda: version that torch was built for; None without.
        platform: operating system.
        python: version.
        packages: versions by name.
    """

    from_iteration: int
    began: str
    device: str
    processor: str
    processes: int
    threads: int
    kernels: str
    cuda: str | None
    platform: str
    python: str
    packages: dict[str, str]


def save_session(folder: Path, iteration: int, device: torch.device, processes: int) -> None:
    """Adds this session to the run's; replaces those that began no earlier.

    Args:
        folder: of the run.
        iteration: number of steps taken before.
        device: of the training.
        processes: their number.
    """
    earlier = [x for x in load_sessions(folder) if x["from_iteration"] < iteration]
    write_json(folder / ENVIRONMENT_FILE, [*earlier, _session(iteration, device, processes)])


def load_sessions(folder: Path) -> list[Session]:
    """The sessions of a run, the first one first; empty if the folder records none."""
    try:
        sessions: list[Session] = read_json(folder / ENVIRONMENT_FILE)
    except (FileNotFoundError, ValueError):  # of an earlier version; changed by hand
        return []
    return sessions


def _session(iteration: int, device: torch.device, processes: int) -> Session:
    info = cac_ext.build_info()
    packages = {"cac_ext": str(info["version"]), "torch": str(torch.__version__)}
    packages |= {
        name: str(sys.modules[name].__version__) for name in _PACKAGES if name in sys.modules
    }
    on_gpu = device.type == "cuda"
    return {
        "from_iteration": iteration,
        "began": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "kernels": str(info["cpu_capability"]),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _processor() -> str:
    """The model of the processor; its architecture where Linux does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
