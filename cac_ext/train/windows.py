"""Windows that slide over an image: where they lie, and the mean of what they see.

Windows go from left to right and from top to bottom. A pixel is finished as soon as no later window
sees it: its sum is divided by the number of windows and leaves as part of a `Block`. So nothing has
the size of the image. Sums are kept of one window, and of the rows that two rows of windows share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """A finished part of an image, ``[K, rows, columns]``, and its first row and column."""

    top: int
    left: int
    probabilities: Tensor


class Windows:
    """Windows along one side of an image.

    They are evenly spaced, reach both ends, and overlap by at least a third.

    Args:
        size: of the image in pixels.
        window: side of a window in pixels; None for one window over the image.

    Attributes:
        side: of a window in pixels, at most ``size``.
        starts: of the windows, ascending.
    """

    def __init__(self, size: int, window: int | None) -> None:
        self.size = size
        self.side = size if window is None else min(window, size)
        steps = math.ceil((size - self.side) / max(1, self.side * 2 // 3))
        self.starts = [
            round(step * (size - self.side) / steps) if steps else 0 for step in range(steps + 1)
        ]

    @property
    def shared(self) -> int:
        """Most pixels that a window shares with the next one."""
        steps = zip(self.starts, self.starts[1:], strict=False)
        return max((start + self.side - following for start, following in steps), default=0)

    def touching(self, span: range) -> list[int]:
        """Starts of the windows that see a pixel of a span."""
        return [s for s in self.starts if s < span.stop and s + self.side > span.start]

    def seen(self, span: range) -> range:
        """The pixels that these windows see."""
        starts = self.touching(span)
        return range(starts[0], starts[-1] + self.side)

    def strips(self, most: int) -> Iterator[range]:
        """The image in consecutive spans, each seen by windows that see at most ``most`` pixels.

        A span begins where a window begins, so that few windows see two spans. It holds the
        beginning of at least one window, whatever that sees.
        """
        begin = 0  # index of the window
        while begin < len(self.starts):
            first = self.starts[begin]
            seen = self.seen(range(first, first + 1)).start
            end = begin + 1
            while end < len(self.starts) and self.starts[end] + self.side - seen <= most:
                end += 1
            yield range(first, self.starts[end] if end < len(self.starts) else self.size)
            begin = end

    def counts(self) -> Tensor:
        """Number of windows that see each pixel, ``[size]`` float32."""
        counts = torch.zeros(self.size)
        for start in self.starts:
            counts[start : start + self.side] += 1
        return counts


def averaged_blocks(
    look: Callable[[int, int], Tensor], down: Windows, across: Windows, rows: range, columns: range
) -> Iterator[Block]:
    """Blocks that cover ``rows`` and ``columns`` of an image, each pixel once.

    What the windows see of a pixel is added in their order and divided by their number.

    Args:
        look: from a window's top and left to what it sees, ``[K, down.side, across.side]``, a new
            tensor of floats, which is overwritten.
        down, across: windows along the height and the width of the image.
        rows, columns: to be covered.
    """
    tops, lefts = down.touching(rows), across.touching(columns)
    height, width = down.side, across.side  # of a window
    counts_down, counts_across = down.counts(), across.counts()
    first = lefts[0]
    shared: Tensor | None = None  # [K, rows, columns from `first` on]: sums for the next windows
    above = 0  # rows of `shared` in use
    for top, next_top in zip(tops, [*tops[1:], tops[-1] + height], strict=True):
        done = next_top - top  # rows that no later window sees
        before: Tensor | None = None  # [K, height, width]: sums of the window to the left
        kept = 0  # columns of this window that `before` has, too
        for left, next_left in zip(lefts, [*lefts[1:], lefts[-1] + width], strict=True):
            sums = look(top, left)
            if shared is None:
                shared = sums.new_empty(len(sums), down.shared, lefts[-1] + width - first)
            if before is not None:
                sums[:, :, :kept] += before[:, :, width - kept :]
            x = left - first
            sums[:, :above, kept:] += shared[:, :above, x + kept : x + width]
            finished = sums[:, :, : next_left - left]
            shared[:, : height - done, x : next_left - first] = finished[:, done:]
            begin, end = max(top, rows.start), min(next_top, rows.stop)
            start, stop = max(left, columns.start), min(next_left, columns.stop)
            if begin < end and start < stop:
                counts = counts_down[begin:end, None] * counts_across[None, start:stop]
                block = finished[:, begin - top : end - top, start - left : stop - left]
                yield Block(begin, start, block.div_(counts.to(block.device)))
            before, kept = sums, left + width - next_left
        above = height - done
