"""Names of the runs in a figure, and the folder into which it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def titled(folders: Sequence[Path]) -> dict[str, Path]:
    """Runs by the names of their folders; by whole paths if two names are equal."""
    named = {folder.resolve().name: folder for folder in folders}
    if len(named) == len(folders):
        return named
    return {str(folder): folder for folder in folders}


def output_folder(folders: Sequence[Path], given: Path | None) -> Path:
    """``given``; or ``figures`` in the folder of the only run, or beside that of the first."""
    return given or (folders[0] if len(folders) == 1 else folders[0].parent) / "figures"
