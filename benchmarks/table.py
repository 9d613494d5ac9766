"""Tables, as plain text and as Markdown, and the units in which people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def seconds(value: float | None) -> str:
    """``0.0123`` -> ``12.3 ms``."""
    if value is None or math.isnan(value):
        return "-"
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}" if value * scale < 1e3 else f"{value:.0f} s"
    return f"{value * 1e6:.3g} us"


def size(value: float | None) -> str:
    """Bytes as MiB or GiB."""
    if value is None:
        return "-"
    if value < 2**30:
        return f"{value / 2**20:.3g} MiB" if value < 2**20 * 100 else f"{value / 2**20:.0f} MiB"
    return f"{value / 2**30:.2f} GiB"


def rate(value: float | None) -> str:
    """Operations a second."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value / 1e12:.2f} T" if value >= 1e12 else f"{value / 1e9:.0f} G"


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.0f}%"


def ratio(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}x" if value >= 10 else f"{value:.2f}x"


def render(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Columns padded to equal width; the first ``left`` are text, the others are numbers."""
    widths = [max(len(str(line[i])) for line in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The same for a document; the first ``left`` columns are text, the others are numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])
