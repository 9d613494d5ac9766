"""Numbers in the units that people read; ``-`` for a missing one."""

from __future__ import annotations

import math


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
    """``0.5`` -> ``50%``."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.0f}%"


def ratio(value: float | None) -> str:
    """``1.5`` -> ``1.50x``."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}x" if value >= 10 else f"{value:.2f}x"
