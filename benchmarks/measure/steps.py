"""Signs of life during a benchmark, and its end if a call does not return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cac_ext.train.runtime.progress import Progress

#: A step may end this late after the deadline, in seconds and as a share of the time budget:
#: predictions are slightly wrong.
LEAST_GRACE, GRACE_SHARE = 10.0, 0.1


class Steps(Progress):
    """Shows the current step and its duration: a bar, or in a file a line every 5 s.

    A thread shows it, even while a call keeps the program busy for minutes. Nothing can interrupt
    such a call. So every step is predicted before it begins. If one still lasts far beyond the
    deadline, the thread calls ``give_up``, which may end the process.

    Args:
        total: number of steps.
        deadline: of the whole run, on the clock of `time.monotonic`.
        give_up: receives the name of the stuck step and its seconds so far; None keeps waiting.
        options: as of `tqdm`.
    """

    LINE_SECONDS = 5.0
    #: Seconds between two checks of the thread; a check takes less than a millisecond.
    PERIOD = 1.0

    def __init__(
        self,
        total: int,
        deadline: float,
        give_up: Callable[[str, float], object] | None = None,
        **options: Any,
    ) -> None:
        grace = LEAST_GRACE + GRACE_SHARE * max(deadline - time.monotonic(), 0.0)
        self._last_moment = deadline + grace
        self._give_up, self._given_up = give_up, threading.Event()
        self._step, self._began = "start", time.monotonic()
        self._closed = threading.Event()
        super().__init__(None, self._step, total=total, dynamic_ncols=True, **options)
        if self._as_lines:
            self._write_line(0.0)
        # A daemon: a forgotten `close` must not keep the program alive.
        threading.Thread(target=self._watch, name="steps", daemon=True).start()

    def begin(self, step: str) -> None:
        """Name the step that begins now."""
        if self._given_up.is_set():  # results are being written: do not change them
            threading.Event().wait()
        self._step, self._began = step, time.monotonic()
        self._show()

    def close(self) -> None:
        self._closed.set()
        super().close()

    def _show(self) -> None:
        seconds = time.monotonic() - self._began
        self.desc = self._step if seconds < 2 else f"{self._step}, {seconds:.0f} s"
        self.refresh()

    def _watch(self) -> None:
        while not self._closed.wait(self.PERIOD):
            self._show()
            if self._give_up is not None and time.monotonic() > self._last_moment:
                self._given_up.set()
                self.close()
                self._give_up(self._step, time.monotonic() - self._began)
                return
