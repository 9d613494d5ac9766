"""Says in one sentence what is wrong if the compiled module does not fit the torch that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_REBUILD = "rebuild it with `pip install --no-build-isolation --no-deps --force-reinstall cac_ext`"


def read_build_config() -> dict[str, Any]:
    """What CMake wrote beside the compiled module: torch, CUDA, architectures, compiler."""
    path = Path(__file__).with_name("build_config.json")
    if not path.exists():
        raise ImportError(
            f"cac_ext is not built: {path.name} is missing from {path.parent}. In a source tree "
            "run `pip install --no-build-isolation -e .`; elsewhere reinstall cac_ext"
        )
    return json.loads(path.read_text())


def check_torch_version() -> None:
    """Raise ImportError if cac_ext was built against another minor version of torch."""
    built = read_build_config()["torch"]
    running = torch.__version__
    # torch promises no stable C++ interface between minor versions; loading would fail with an
    # undefined symbol at best.
    if built.split(".")[:2] != running.split(".")[:2]:
        raise ImportError(
            f"cac_ext was built against torch {built}, but torch {running} is running: {_REBUILD}"
        )


def explain_load_failure(error: ImportError) -> ImportError:
    """The error to raise when the compiled module does not load although the versions agree."""
    return ImportError(
        f"the compiled module of cac_ext does not load ({error}); it was built against torch "
        f"{read_build_config()['torch']}, torch {torch.__version__} is running: {_REBUILD}"
    )
