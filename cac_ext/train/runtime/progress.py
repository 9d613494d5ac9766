"""Progress of a loop: a bar on a terminal, occasional lines in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    _Tqdm = tqdm[Any]
else:
    _Tqdm = tqdm  # at run time it takes no type argument

_LINE_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]\n"


def on_terminal(file: TextIO | None = None) -> bool:
    """Whether a bar on ``file``, standard error by default, can be redrawn in place."""
    file = sys.stderr if file is None else file
    return hasattr(file, "isatty") and file.isatty()


def _size_is_unknown(file: TextIO | None) -> bool:
    """Whether a terminal reports the size 0, as many without a window do (e.g. in a container)."""
    try:
        return 0 in os.get_terminal_size((sys.stderr if file is None else file).fileno())
    except (OSError, ValueError):
        return False


class Progress(_Tqdm):
    """`tqdm` that also reads well in a file, where nothing can be redrawn.

    On a terminal it is tqdm's bar. Elsewhere it writes a line every `LINE_SECONDS`, less often in a
    long loop, and one at the end. ``leave=False`` clears the bar at the end; in a file it omits the
    last line unless earlier lines were written.

    Args:
        iterable: to loop over; None if the caller calls `update`.
        desc: prefix of the bar.
        options: of `tqdm`.
    """

    _time: Callable[[], float]  # tqdm's clock, which its type stubs omit

    #: Shortest time between two lines, in seconds.
    LINE_SECONDS = 10.0
    #: Later lines are this share of the elapsed time apart: a day makes hundreds, not thousands.
    LINE_SHARE = 0.01

    def __init__(
        self, iterable: Iterable[Any] | None = None, desc: str | None = None, **options: Any
    ) -> None:
        self._as_lines = not on_terminal(options.get("file"))
        self._last_line = 0.0  # seconds from the start to the latest line; 0 before the first
        self._last_n: float | None = None  # items done at that line
        if self._as_lines:
            # tqdm calls an output that it does not draw itself a gui.
            options |= {"gui": True, "mininterval": self.LINE_SECONDS, "miniters": 1}
            options["bar_format"] = _LINE_FORMAT
        elif _size_is_unknown(options.get("file")):  # tqdm would draw nothing
            options = {"ncols": 80, "nrows": 24, **options, "dynamic_ncols": False}
        super().__init__(iterable, desc, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Redraws the bar; in a file, writes a line if one is due."""
        if not self._as_lines:
            super().display(msg, pos)
            return
        elapsed = self._time() - self.start_t
        apart = max(self.LINE_SECONDS, self.LINE_SHARE * elapsed)
        if elapsed - self._last_line >= apart:
            self._write_line(elapsed)

    def close(self) -> None:
        """Ends the progress, also after an error in the loop."""
        shown = self._as_lines and not self.disable and (self.leave or self._last_line)
        if shown and self.n != self._last_n:
            self._write_line(self._time() - self.start_t)
        super().close()

    def _write_line(self, elapsed: float) -> None:
        self._last_line, self._last_n = elapsed, self.n
        self.fp.write(str(self))
        self.fp.flush()
