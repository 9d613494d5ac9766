"""Files that are whole or not there, whenever the process or the machine dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cac_ext.train.errors import CheckpointError


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Gives an OSError that tells no file, as a full disk's, the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file by ``write(file)``; an earlier one stays until the new one is on the disk.

    Raises what ``write`` raises and OSError; then nothing is left behind.
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
        os.fsync(folder)  # so that the new name itself survives a power cut
    finally:
        os.close(folder)


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def read_saved(path: Path, saved_format: str, what: str) -> dict[str, Any]:
    """The dict that ``torch.save`` wrote, tensors on the CPU.

    Args:
        path: of the file.
        saved_format: what its key ``"format"`` must hold.
        what: the file is, for errors: "checkpoint", ...

    Raises:
        CheckpointError: it is not there, damaged, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {what} {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"cannot read the {what} {path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != saved_format:
        raise CheckpointError(f"{path} is not a {what} written by this version of cac_ext")
    return state
