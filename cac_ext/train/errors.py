"""Errors that the user can fix: the command prints their message alone, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable

_LISTED = 10  # items that a message names; the rest are counted


class UserError(Exception):
    """The trainer cannot use an input; the message names the input and says what is needed."""


class ConfigError(UserError, ValueError):
    """A setting cannot be used; the message names the key and says what is allowed."""


class DataError(UserError, ValueError):
    """A list, image or mask cannot be used; the message names the file."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or written, or belongs to another run."""


class NonFiniteError(UserError, ArithmeticError):
    """A loss or gradient is nan or infinite; the message names the step."""


class ProcessError(UserError, RuntimeError):
    """Another process of the run has ended; the message of that process gives the reason."""


def listed(things: Iterable[object]) -> str:
    """``a, b, c``; after ten things ``and 5 more``."""
    shown = [str(thing) for thing in things]
    more = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f" and {more} more" if more > 0 else "")
