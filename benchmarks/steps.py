"""Signs of life during a benchmark, and its end if a call does not come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cac_ext.train.runtime.progress import Progress

#: A step may last this long beyond the deadline, in seconds and as a share of the time budget:
#: predictions are wrong by a little.
LEAST_GRACE, GRACE_SHARE = 10.0, 0.1


class Steps(Progress):
    """What a benchmark is doing, and for how long: a bar, or in a file a line every 5 s.

    A thread shows it, also while a call of minutes keeps the program busy. Nothing can interrupt
    such a call. So every step is predicted before it begins; if one lasts far beyond the deadline
    all the same, the thread calls ``give_up``, which may end the process.

    Args:
        total: number of steps.
        deadline: of the whole run, on the clock of `time.monotonic`.
        give_up: gets the name of the step that is stuck and its seconds so far; None waits on.
        options: as of `tqdm`.
    """

    LINE_SECONDS = 5.0
    #: Seconds between two looks of the thread; a look takes less than a millisecond.
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
        if self._given_up.is_set():  # the results are being written: nothing may change them
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
