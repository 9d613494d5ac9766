"""Times of the phases of a call: on the CPU by the clock, on a GPU by its events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Inputs


def percentile(samples: list[float], share: float) -> float:
    """The ``share`` quantile with linear interpolation; ``nan`` without samples."""
    if not samples:
        return math.nan
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


#: GPU clock cycles before the first mark: about 5 ms.
_HEAD_START_CYCLES = 10_000_000


class Clock:
    """Marks points in time; the seconds between them are read after the work is done.

    On an idle GPU the events of many small launches would measure how fast the host launches them.
    So the GPU is kept busy for some milliseconds before the first mark, while the host queues the
    work behind it, as in a training: the time of the GPU is measured. Work that the host needs
    longer to launch, or that waits for the GPU, is measured with its waiting.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []  # seconds, or events of the GPU

    def mark(self) -> None:
        if self._cuda:
            if not self._marks:
                torch.cuda._sleep(_HEAD_START_CYCLES)
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Seconds between consecutive marks."""
        pairs = pairwise(self._marks)
        if self._cuda:
            torch.cuda.synchronize()
            return [first.elapsed_time(second) / 1e3 for first, second in pairs]
        return [second - first for first, second in pairs]


def time_forward(loss: Callable[[Inputs], Tensor], inputs: Inputs) -> dict[str, float]:
    """One evaluation without gradient: ``{"forward": seconds}``."""
    inputs = inputs.requiring_grad(False)
    clock = Clock(inputs.features1.device)
    with torch.no_grad():
        clock.mark()
        loss(inputs)
        clock.mark()
    return {"forward": clock.intervals()[0]}


def time_training(loss: Callable[[Inputs], Tensor], inputs: Inputs) -> dict[str, float]:
    """One loss with its gradient: ``{"both": seconds, "backward": seconds}``.

    An implementation may form the gradient in its forward pass. So "backward" alone says little,
    and "forward" is always timed without gradient.
    """
    inputs = inputs.requiring_grad()
    clock = Clock(inputs.features1.device)
    clock.mark()
    value = loss(inputs)
    clock.mark()
    value.backward()
    clock.mark()
    forward, backward = clock.intervals()
    return {"both": forward + backward, "backward": backward}
