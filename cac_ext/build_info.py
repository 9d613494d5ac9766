"""Facts about the build and the processor."""

from __future__ import annotations

from typing import Any

import torch

from cac_ext._load import _C, read_build_config
from cac_ext._version import __version__


def build_info() -> dict[str, Any]:
    """Versions and capabilities, for bug reports and benchmark records.

    Returns:
        ``version``; ``torch_built`` and ``torch_running``; ``compiler``; ``cuda`` (bool),
        ``cuda_version`` and ``cuda_architectures`` the kernels were built for; ``cpu_capability``
        in use and ``cpu_capabilities`` this processor and build could use.
    """
    config = read_build_config()
    return {
        "version": __version__,
        "torch_built": config["torch"],
        "torch_running": torch.__version__,
        "compiler": config["compiler"],
        "cuda": bool(config["cuda"]),
        "cuda_version": config["cuda"] or None,
        "cuda_architectures": config["cuda_architectures"].split(),
        "cpu_capability": _C.cpu_capability(),
        "cpu_capabilities": _C.cpu_capabilities(),
    }
