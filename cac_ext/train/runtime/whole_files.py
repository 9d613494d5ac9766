"""Files that are whole or absent, even if the process or the machine dies while writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cac_ext.train.errors import CheckpointError


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Adds the file name to an OSError that carries none (e.g. disk full)."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file by ``write(file)``; an earlier file stays until the new one is on the disk.

    Raises what ``write`` raises, and OSError. A failed write leaves no partial file.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with naming(path), open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a power cut
    finally:
        os.close(folder)


def write_text_whole(path: Path, text: str) -> None:
    """Writes text in UTF-8 with `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode()))


def read_saved(path: Path, formats: Sequence[str], what: str) -> dict[str, Any]:
    """Reads a dict that ``torch.save`` wrote, with tensors on the CPU.

    Args:
        path: of the file.
        formats: the values that its key ``"format"`` may have.
        what: name of this kind of file, for errors: "checkpoint", ...

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {what} {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"cannot read the {what} {path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") not in formats:
        raise CheckpointError(f"{path} is not a {what} written by this version of cac_ext")
    return state
