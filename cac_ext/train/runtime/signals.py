"""SIGTERM, as schedulers send it before they kill, and Ctrl-C: finish the step, save, stop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

#: torchrun passes a Ctrl-C on to processes that the terminal has told already: one, not two.
_SAME_CTRL_C = 2.0  # seconds


class TrainingStopped(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop and has saved what it needs to go on."""

    signal = signal.SIGTERM  # or SIGINT: who asked


class StopRequest:
    """Within it SIGTERM and the first Ctrl-C do not end the process but set `requested`.

    The second Ctrl-C raises KeyboardInterrupt at once, and so does, at the end, the first one where
    nobody has acted on it. Afterwards all is as before. A `TrainingStopped` that leaves it carries
    the signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signal: int | None = None
        self._previous: dict[int, object] = {}
        self._interrupted_at = 0.0

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread handle signals; elsewhere its owner decides.
        if threading.current_thread() is not threading.main_thread():
            return self
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        # Where Ctrl-C is ignored (a job in the background) or another's, it stays so.
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
                with contextlib.suppress(OSError):  # not print: it may be interrupted in a print
                    os.write(
                        2, b"\nCtrl-C: finishes what it is at and saves; again: ends at once\n"
                    )
        elif "LOCAL_RANK" not in os.environ or now - self._interrupted_at > _SAME_CTRL_C:
            raise KeyboardInterrupt

    def _request(self, number: int) -> None:
        self.requested = True
        self._signal = number


def leave_signals_to_the_main_process(worker: int) -> None:
    """For the workers of a DataLoader: what is sent to the whole group must not end them first.

    They end when the main process says so, by SIGTERM of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_main_process() -> None:
        # A handler would not learn who sent the signal.
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)  # any other code would be reported as a crash

    threading.Thread(target=wait_for_main_process, daemon=True).start()
