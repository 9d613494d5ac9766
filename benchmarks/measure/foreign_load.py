"""Whether other programs used the processors during a measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path


def _busy_seconds() -> float | None:
    """Seconds that all processors have worked since the system started; None if unknown."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[:8])
    except (OSError, IndexError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class ForeignLoad:
    """Share of all processors that others used since construction, steal included."""

    def __init__(self) -> None:
        self._start = time.monotonic(), _busy_seconds(), _own_seconds()

    def share(self) -> float | None:
        """None if the system does not report it."""
        clock, busy, own = self._start
        now = _busy_seconds()
        if busy is None or now is None:
            return None
        foreign = (now - busy) - (_own_seconds() - own)
        available = (time.monotonic() - clock) * (os.cpu_count() or 1)
        return min(max(foreign / max(available, 1e-9), 0.0), 1.0)
