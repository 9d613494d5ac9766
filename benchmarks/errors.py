"""The error that a user of the command line can fix."""

from __future__ import annotations


class UsageError(ValueError):
    """A request that cannot be met; the message says what was given and what is needed.

    The command shows the message alone. Every other exception is a bug and keeps its traceback.
    """
