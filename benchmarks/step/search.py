"""The largest number of negatives, or of images, whose training step fits into memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measure.memory import MemoryUse

#: First and last size of each search. The quicker one comes first: the other gets its spare time.
RANGES = {"batch": (1, 1_024), "negatives": (6_400, 6_553_600)}
#: The largest size is known when one at most this share above it is too large.
RESOLUTION = 0.1
#: Share of the time budget that is kept for all searches.
SEARCH_SHARE = 1 / 2

MEMORY, TIME, END = "memory budget", "time budget", "end of the search"


@dataclass(frozen=True)
class Found:
    """``stopped_by`` is one of the constants above or the error of a step that failed."""

    largest: int | None  # size that fits; None if no size does
    too_large: int | None  # smallest size that does not fit; None if all fit
    stopped_by: str


def find_largest(
    probe: Callable[[int], MemoryUse], first: int, last: int, deadline: float
) -> Found:
    """Doubles the size from ``first`` until one does not fit, then bisects.

    Args:
        probe: measures one size; a size that does not fit is ``out_of_memory``.
        deadline: on the clock of `time.monotonic`; no size is begun after it.
    """
    largest: int | None = None
    too_large: int | None = None
    size = first
    while time.monotonic() < deadline:
        use = probe(size)
        if use.status == "timed_out":
            break
        if use.status == "failed":
            if size > first:
                return Found(largest, too_large, use.detail)
            size = 2 * first  # some networks cannot normalize over a single image
            continue
        if use.status == "ok":
            largest = size
        else:
            too_large = size
        if too_large is None:
            if size >= last:
                return Found(largest, None, END)
            size = min(2 * size, last)
        elif largest is None or too_large - largest <= max(1, RESOLUTION * largest):
            return Found(largest, too_large, MEMORY)
        else:
            size = (largest + too_large) // 2
    return Found(largest, too_large, TIME)


def describe(largest: int | None, too_large: int | None, stopped_by: str) -> str:
    """``409,600`` if memory set the limit; else the known bounds and the reason."""
    if stopped_by == MEMORY:
        return f"< {too_large:,}" if largest is None else f"{largest:,}"
    if largest is None:
        return f"- ({stopped_by})"
    if too_large is not None:
        return f"{largest:,} to {too_large:,} ({stopped_by})"
    return f">= {largest:,} ({'largest of the search' if stopped_by == END else stopped_by})"
