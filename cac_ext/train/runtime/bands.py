"""Large pictures are worked on by bands of rows: temporary copies take several times their size."""

from __future__ import annotations

from collections.abc import Iterator

#: Most pixels of a band, unless a row has more.
BAND_PIXELS = 1 << 22


def bands(height: int, width: int) -> Iterator[slice]:
    """Slices of rows that cover a picture from top to bottom."""
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
