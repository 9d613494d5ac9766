"""On SIGTERM (schedulers send it before they kill) and Ctrl-C: finish the step, save, stop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

#: The terminal and torchrun both send a Ctrl-C to each process: within this time it counts once.
_SAME_CTRL_C = 2.0  # seconds
_CTRL_C_NOTE = b"\nCtrl-C: finishing this step, then saving; press again to end at once\n"
_CTRL_C_NOTE = b"\nCtrl-C: finishing this step, then saving; press again to end at once\n"


class TrainingStopped(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop and has saved what it needs to resume."""

    signal: int = signal.SIGTERM  # or SIGINT: the signal that asked


class StopRequest:
    """A context in which SIGTERM and the first Ctrl-C set `requested` and do not end the process.

    The second Ctrl-C raises KeyboardInterrupt at once. The first one raises it at the end of the
    context if nothing acted on it. A `TrainingStopped` that leaves the context carries the signal.
    Earlier signal handlers are restored.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signal: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._interrupted_at = 0.0

    def __enter__(self) -> StopRequest:
        # Only the main thread may set handlers; elsewhere the owner of that thread decides.
        if threading.current_thread() is not threading.main_thread():
            return self
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        # An ignored Ctrl-C (a background job) and a handler set by others stay as they are.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, TrainingStopped) and self._signal is not None:
            error.signal = self._signal
        if kind is None and self._signal == signal.SIGINT:
            raise KeyboardInterrupt

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._request(number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal != signal.SIGINT:
            self._request(number)
            self._interrupted_at = now
            if os.environ.get("RANK", "0") == "0":
                with contextlib.suppress(OSError):  # not print: a print may be what it interrupted
                    os.write(2, _CTRL_C_NOTE)
        elif "LOCAL_RANK" not in os.environ or now - self._interrupted_at > _SAME_CTRL_C:
            raise KeyboardInterrupt

    def _request(self, number: int) -> None:
        self.requested = True
        self._signal = number


def leave_signals_to_the_main_process(worker: int) -> None:
    """For DataLoader workers: a signal to the whole process group must not end them first.

    They end by a SIGTERM that the main process sends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_main_process() -> None:
        # Unlike a handler, sigwaitinfo reports the sender.
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)  # any other code would be reported as a crash

    threading.Thread(target=wait_for_main_process, daemon=True).start()
