"""Progress of a loop: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

_LINE_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]\n"


def on_terminal(file: TextIO | None = None) -> bool:
    """Whether ``file``, standard error by default, can draw a bar over its last state."""
    file = sys.stderr if file is None else file
    return hasattr(file, "isatty") and file.isatty()


def _size_is_unknown(file: TextIO | None) -> bool:
    """Of a terminal: many that no window shows, as in a container, say that they have no size."""
    try:
        return 0 in os.get_terminal_size((sys.stderr if file is None else file).fileno())
    except (OSError, ValueError):
        return False


class Progress(tqdm):
    """`tqdm` that also reads well in a file, where nothing can be drawn over.

    On a terminal it is tqdm's bar. Elsewhere it is a line every `LINE_SECONDS`, less often in a
    loop that has run for long, and one at the end. With ``leave=False``, which clears the bar at
    the end, there is a last line only if there were others.

    Args:
        iterable: what to loop over; None where `update` is called instead.
        desc: stands in front.
        options: as of `tqdm`.
    """

    #: Least time between two lines, in seconds.
    LINE_SECONDS = 10.0
    #: Later lines are this share of the time so far apart: a day makes hundreds, not thousands.
    LINE_SHARE = 0.01

    def __init__(
        self, iterable: Iterable | None = None, desc: str | None = None, **options: Any
    ) -> None:
        self._as_lines = not on_terminal(options.get("file"))
        self._last_line = 0.0  # seconds since the start; 0 as long as there is none
        self._last_n: float | None = None  # of that line
        if self._as_lines:
            # tqdm's word for an output that it does not draw itself.
            options |= {"gui": True, "mininterval": self.LINE_SECONDS, "miniters": 1}
            options["bar_format"] = _LINE_FORMAT
        elif _size_is_unknown(options.get("file")):  # of no size, tqdm would draw nothing
            options = {"ncols": 80, "nrows": 24, **options, "dynamic_ncols": False}
        super().__init__(iterable, desc, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Draw the bar anew; in a file, write a line if it is time for one."""
        if not self._as_lines:
            return super().display(msg, pos)
        elapsed = self._time() - self.start_t
        apart = max(self.LINE_SECONDS, self.LINE_SHARE * elapsed)
        if elapsed - self._last_line >= apart:
            self._write_line(elapsed)
        return True

    def close(self) -> None:
        """At the end of the loop, also one that an error ended."""
        shown = self._as_lines and not self.disable and (self.leave or self._last_line)
        if shown and self.n != self._last_n:
            self._write_line(self._time() - self.start_t)
        super().close()

    def _write_line(self, elapsed: float) -> None:
        self._last_line, self._last_n = elapsed, self.n
        self.fp.write(str(self))
        self.fp.flush()
