"""Facts about the build and the processor."""

from __future__ import annotations

import os
from typing import Any

import torch

from cac_ext._load import _C, read_build_config
from cac_ext._version import __version__
from cac_ext.ops import DTYPE_NUMBERS


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


def cpu_peak(
    dtype: torch.dtype, instruction_set: str | None = None, threads: int | None = None
) -> float:
    """Operations a second of multiply-adds on registers, which no kernel on this CPU can exceed.

    The loop has enough independent sums to hide the latency of its instructions, and touches no
    memory. It takes about 50 ms; the figure is that of the best 2 ms, on all threads together.

    Args:
        dtype: of the factors. Sums of bfloat16 products are float32.
        instruction_set: One of ``build_info()["cpu_capabilities"]``: the loop uses the fastest
            instructions for ``dtype`` up to this set. Default: the set that the loss uses.
        threads: that run it together. Default: ``torch.get_num_threads()``.

    Returns:
        FLOP/s; a multiplication and an addition count as two.

    Raises:
        TypeError: ``dtype`` is no floating-point type of features.
        ValueError: The set is unknown, or has no instructions that multiply ``dtype`` (the loss
            then multiplies such features as float32); ``threads`` is not from 1 to the number of
            processors.
    """
    if dtype not in DTYPE_NUMBERS:
        names = ", ".join(map(str, DTYPE_NUMBERS))
        raise TypeError(f"dtype must be one of {names}, but got {dtype!r}")
    sets = _C.cpu_capabilities()
    name = _C.cpu_capability() if instruction_set is None else instruction_set
    if name not in sets:
        raise ValueError(
            f"instruction_set must be one of {', '.join(sets)}, which this processor and build "
            f"have, but got {name!r}"
        )
    having = _C.cpu_peak_capabilities(DTYPE_NUMBERS[dtype])
    if not any(one in having for one in sets[: sets.index(name) + 1]):
        able = f"sets that do are {', '.join(having)}" if having else "no set does here"
        raise ValueError(
            f"no instruction set up to {name!r} multiplies {dtype}: the loss multiplies such "
            f"features as torch.float32; {able}"
        )
    count = torch.get_num_threads() if threads is None else threads
    most = max(os.cpu_count() or 1, torch.get_num_threads())
    if not 1 <= count <= most:
        raise ValueError(f"threads must be from 1 to {most}, but got {count}")
    return _C.cpu_peak(DTYPE_NUMBERS[dtype], name, count)
