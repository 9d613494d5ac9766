"""Loads the compiled module, or raises one sentence that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["_C", "check_torch_version", "read_build_config"]

_REBUILD = "rebuild it with `pip install --no-build-isolation --no-deps --force-reinstall cac_ext`"


def read_build_config() -> dict[str, Any]:
    """The build facts beside the compiled module: torch, CUDA, architectures, compiler."""
    path = Path(__file__).with_name("build_config.json")
    if not path.exists():
        raise ImportError(
            f"cac_ext is not built: {path.name} is missing from {path.parent}. In a source tree "
            "run `pip install --no-build-isolation -e .`; elsewhere reinstall cac_ext"
        )
    return json.loads(path.read_text())


def check_torch_version(built: str, running: str) -> None:
    """Raise ImportError if cac_ext was built against another minor version of torch."""
    # torch has no stable C++ interface across minor versions: at best, loading would fail with an
    # undefined symbol.
    if built.split(".")[:2] != running.split(".")[:2]:
        raise ImportError(
            f"cac_ext was built against torch {built}, but torch {running} is running: {_REBUILD}"
        )


_built_against = read_build_config()["torch"]
check_torch_version(_built_against, torch.__version__)
try:
    from cac_ext import _C  # loading it registers the operators
except ImportError as error:
    raise ImportError(
        f"the compiled module of cac_ext does not load ({error}); it was built against torch "
        f"{_built_against}, and torch {torch.__version__} is running: {_REBUILD}"
    ) from error
