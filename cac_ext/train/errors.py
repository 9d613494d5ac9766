"""Errors that the user can mend: the command shows their message alone, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable

_LISTED = 10  # names in a message; the rest is counted


class UserError(Exception):
    """Something given to the trainer cannot be used; the message names it and what is needed."""


class ConfigError(UserError, ValueError):
    """The configuration cannot be used; the message names the key and says what is allowed."""


class DataError(UserError, ValueError):
    """A list, image or mask cannot be used; the message names the file."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read, or does not belong to this run."""


class NonFiniteError(UserError, ArithmeticError):
    """A loss or gradient is nan or infinite; the message says in which step."""


class ProcessError(UserError, RuntimeError):
    """Another process of the run has ended; the reason is in that one's message."""


def listed(things: Iterable[object]) -> str:
    """``a, b, c``, and of more than ten things how many more there are."""
    shown = [str(thing) for thing in things]
    more = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f" and {more} more" if more > 0 else "")
