"""What values of the right type must satisfy: bounds of numbers, and what keys ask of each other.

The bounds of a number stand beside its field in `schema.py`, so that no key can be without.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from cac_ext.train.errors import ConfigError, listed

_MOST_ITERATIONS = 10**9
_UNNAMED = ("Cc", "Zl", "Zp", "Cs")  # control characters, separators of lines, half characters


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers; nan and infinite values lie in none.

    Attributes:
        low, high: its ends.
        low_excluded, high_excluded: whether an end itself is outside.
        too_low: what an error says of a value below them.
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
        if self.low_excluded:
            return f"greater than {self.low} and at most {self.high}"
        if self.high_excluded:
            return f"at least {self.low} and below {self.high}"
        return f"within {self.low} and {self.high}"


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
        bounds: of the number, or of each number in a list; several: of a tuple's elements in turn.
        ordered: of a pair, whether it must be [low, high].
    """
    return {"bounds": bounds, "ordered": ordered}


def number(default: Any, bounds: Bounds | Sequence[Bounds], *, ordered: bool = False) -> Any:
    """A field with a default and `bounded` metadata."""
    return field(default=default, metadata=bounded(bounds, ordered=ordered))


def check_values(config: Any) -> None:
    """Raises ConfigError for values of the right type that cannot work; it names the key.

    ``config`` is a whole `schema.Config`.
    """
    _check_section(config, "")
    maps, schedule, data = config.image_classifier, config.schedule, config.data
    if maps.background > maps.foreground:
        raise ConfigError(
            f"image_classifier.background must be within 0 and image_classifier.foreground, "
            f"{maps.foreground}, but is {maps.background}"
        )
    if config.iterations > _MOST_ITERATIONS:
        raise ConfigError(
            f"schedule.epochs times schedule.iterations_per_epoch must be at most "
            f"{_MOST_ITERATIONS:,}, but is {schedule.epochs} times "
            f"{schedule.iterations_per_epoch}"
        )
    if data.class_names is not None:
        check_class_names(data.class_names, "data.class_names")
        if data.num_classes is not None and len(data.class_names) != data.num_classes:
            raise ConfigError(
                f"data.class_names has {len(data.class_names)} names, but data.num_classes is "
                f"{data.num_classes}"
            )


def check_class_names(names: Sequence[str], key: str) -> None:
    """Raises ConfigError unless all names are texts of one line, none is empty or there twice.

    Names are compared as given: "Road" and "road" are two. ``key`` says where they come from.
    """
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(
                f"{key}: the name of class {index} is {name!r}, but must be a text that is not "
                "empty"
            )
        if any(unicodedata.category(character) in _UNNAMED for character in name):
            raise ConfigError(
                f"{key}: the name of class {index}, {name!r}, holds a line break or another "
                "control character"
            )
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(name, []).append(index)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    if twice:
        named = [f"{name!r} of classes {listed(found)}" for name, found in twice.items()]
        raise ConfigError(
            f"{key} has names more than once: {listed(named)}. Results go by the name: give each "
            "class its own"
        )


def _check_section(section: Any, prefix: str) -> None:
    for f in fields(section):
        key, value = f"{prefix}{f.name}", getattr(section, f.name)
        if is_dataclass(value):
            _check_section(value, f"{key}.")
        elif isinstance(value, str):
            if not value.strip() or "\0" in value:
                raise ConfigError(f"{key} must be a text that is not empty, but is {value!r}")
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise ConfigError(f"{key} holds bytes that are no text: {value!r}")
        elif value is not None and "bounds" in f.metadata:
            _check_number(key, value, f)


def _check_number(key: str, value: Any, f: Any) -> None:
    bounds, ordered = f.metadata["bounds"], f.metadata["ordered"]
    if not isinstance(value, list | tuple):
        if not bounds.holds(value):
            reason = f": {bounds.too_low}" if bounds.too_low and value < bounds.low else ""
            null = ", or null" if f.default is None else ""
            raise ConfigError(f"{key} must be {bounds}{null}, but is {value}{reason}")
        return
    needed = len(f.default) if isinstance(f.default, tuple) else None
    shown = list(value)
    if (needed is not None and len(value) != needed) or not value:
        count = f"{needed} numbers" if needed else "numbers, at least one"
        raise ConfigError(f"{key} must be a list of {count}, but is {shown}")
    each = [bounds] * len(value) if isinstance(bounds, Bounds) else bounds
    held = all(b.holds(v) for b, v in zip(each, value, strict=True))
    if ordered:
        if not held or value[0] > value[1]:
            raise ConfigError(
                f"{key} must be [low, high] with low <= high, both {bounds}, but is {shown}"
            )
    elif not held:
        if isinstance(bounds, Bounds):
            raise ConfigError(f"{key} must be numbers {bounds}, but is {shown}")
        named = ", ".join(f"number {i} {b}" for i, b in enumerate(each, 1))
        raise ConfigError(f"{key} must be {len(each)} numbers, {named}, but is {shown}")
