"""SIGTERM, as schedulers send it before they kill: finish the step, save, stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType


class TrainingStopped(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop and has saved what it needs to go on."""


class StopRequest:
    """Within it SIGTERM does not kill but sets `requested`; after it, all is as before."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread handle signals; elsewhere its owner decides.
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


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
