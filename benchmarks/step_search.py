"""The largest number of negatives, or of images, with which a training step fits into memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.memory import MemoryUse

#: First and last size of each search; the quicker one first, for the other gets what it leaves.
RANGES = {"batch": (1, 1_024), "negatives": (6_400, 6_553_600)}
#: The largest size is known when one too large is no further above it than this share.
RESOLUTION = 0.1

MEMORY, TIME, END = "memory budget", "time budget", "end of the search"


@dataclass(frozen=True)
class Found:
    """``stopped_by`` is one of the constants above or the error of a step that failed."""

    largest: int | None  # that fits; None if none did
    too_large: int | None  # the smallest that did not fit; None if all did
    stopped_by: str


def find_largest(
    probe: Callable[[int], MemoryUse], first: int, last: int, deadline: float
) -> Found:
    """Sizes double from ``first`` to the first that does not fit, then halve what lies between.

    Args:
        probe: measures one size; ``out_of_memory`` is what does not fit.
        deadline: of `time.monotonic`; no size is begun after it.
    """
    largest = too_large = None
    size = first
    while time.monotonic() < deadline:
        use = probe(size)
        if use.status == "timed_out":
            break
        if use.status == "failed":
            if size > first:
                return Found(largest, too_large, use.detail)
            size = 2 * first  # some networks cannot normalise over a single image
            continue
        if use.status == "ok":
            largest = size
        else:
            too_large = size
        if too_large is None:
            if largest >= last:
                return Found(largest, None, END)
            size = min(2 * largest, last)
        elif largest is None or too_large - largest <= max(1, RESOLUTION * largest):
            return Found(largest, too_large, MEMORY)
        else:
            size = (largest + too_large) // 2
    return Found(largest, too_large, TIME)


def describe(largest: int | None, too_large: int | None, stopped_by: str) -> str:
    """``409,600`` if memory set the limit; else what is known, and why no more is."""
    if stopped_by == MEMORY:
        return f"< {too_large:,}" if largest is None else f"{largest:,}"
    if largest is None:
        return f"- ({stopped_by})"
    if too_large is not None:
        return f"{largest:,} to {too_large:,} ({stopped_by})"
    return f">= {largest:,} ({'largest of the search' if stopped_by == END else stopped_by})"
