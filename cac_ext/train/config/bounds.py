"""Bounds of numbers. They stand beside each field in `schema.py`; a test finds a field without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_LARGE = 2**31 - 1


@dataclass(frozen=True)
class Bounds:
    """An interval of finite numbers.

    Attributes:
        low, high: the ends.
        low_excluded, high_excluded: whether an end itself is outside.
        too_low: the reason that an error gives for a value below ``low``.
    """

    low: float
    high: float
    low_excluded: bool = False
    high_excluded: bool = False
    too_low: str = ""

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        if not math.isfinite(value):
            return False
        above = value > self.low if self.low_excluded else value >= self.low
        return above and (value < self.high if self.high_excluded else value <= self.high)

    def __str__(self) -> str:
        low, high = _readable(self.low), _readable(self.high)
        if self.low_excluded:
            return f"greater than {low} and at most {high}"
        if self.high_excluded:
            return f"at least {low} and below {high}"
        return f"between {low} and {high}"


def _readable(number: float) -> str:
    """A large power of two as such: ``2^63 - 1`` for 9223372036854775807."""
    if isinstance(number, int) and abs(number) >= _LARGE:
        size = abs(number)
        if size & (size - 1) == 0:
            return f"{'-' if number < 0 else ''}2^{size.bit_length() - 1}"
        if number > 0 and size & (size + 1) == 0:
            return f"2^{size.bit_length()} - 1"
    return str(number)


def within(low: float, high: float, *, too_low: str = "") -> Bounds:
    """``low <= value <= high``."""
    return Bounds(low, high, too_low=too_low)


def above(low: float, high: float) -> Bounds:
    """``low < value <= high``."""
    return Bounds(low, high, low_excluded=True)


def below(high: float, low: float = 0) -> Bounds:
    """``low <= value < high``."""
    return Bounds(low, high, high_excluded=True)


def bounded(bounds: Bounds | Sequence[Bounds], *, ordered: bool = False) -> dict[str, Any]:
    """The metadata of a field that holds a number, or a list or tuple of numbers.

    Args:
        bounds: one for the number or for all numbers in a list; several: one for each element of
            a tuple.
        ordered: whether a pair must be [low, high].
    """
    return {"bounds": bounds, "ordered": ordered}


def number(default: Any, bounds: Bounds | Sequence[Bounds], *, ordered: bool = False) -> Any:
    """A field with a default and `bounded` metadata."""
    return field(default=default, metadata=bounded(bounds, ordered=ordered))
