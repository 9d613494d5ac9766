"""Types of command-line arguments: impossible values are refused before anything is measured."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import PurePath


def positive_int(text: str) -> int:
    """1, 2, ..."""
    return _integer(text, 1)


def non_negative_int(text: str) -> int:
    """0, 1, 2, ..."""
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"needs an integer of at least {least}, but got {text!r}")
    return value


#: More seconds or GiB than anyone has: a larger number is a typing error.
_MOST = 1e9


def positive_float(text: str) -> float:
    """A number above 0 and up to a billion."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"needs a number above 0, but got {text!r}")
    if value > _MOST:
        raise argparse.ArgumentTypeError(f"needs a number up to {_MOST:.0f}, but got {text!r}")
    return value


def device(text: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:1``, if that device exists."""
    import torch

    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"needs cpu, cuda, cuda:0, cuda:1, ..., but got {text!r}")
    if text == "cpu":
        return text
    if not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text}: this torch finds no CUDA device")
    count = torch.cuda.device_count()
    if found[1] is not None and int(found[1]) >= count:
        raise argparse.ArgumentTypeError(
            f"{text}: the last of the {count} CUDA devices is cuda:{count - 1}"
        )
    return text


#: An absolute path, alone or as a value: ``--output=/a/b.json``, ``data.lists=[/a/x,~/y]``.
_ABSOLUTE = re.compile(r"""(?P<before>^|[=\[,'"])(?P<path>[~/][^,\]'"]*)""")


def without_folders(text: str) -> str:
    """Shortens absolute paths to their last part: other people have other folders."""
    return _ABSOLUTE.sub(lambda match: match["before"] + PurePath(match["path"]).name, text)


def command_line(command: Sequence[str]) -> str:
    """The words as one line for a shell, without the user's folders."""
    import shlex

    return "python -m benchmarks " + shlex.join(map(without_folders, command))
