"""Checks of values that have the right type: bounds of numbers, texts, relations between keys."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any

from cac_ext.train.config.bounds import Bounds
from cac_ext.train.config.schema import Config, DataConfig
from cac_ext.train.errors import ConfigError, listed

_MOST_ITERATIONS = 10**9
_UNNAMED = ("Cc", "Zl", "Zp", "Cs")  # control characters, separators of lines, half characters


def check_values(config: Config) -> None:
    """Raises ConfigError for values of the right type that cannot work; it names the key."""
    _check_section(config, "")
    maps, schedule, data = config.image_classifier, config.schedule, config.data
    if maps.background > maps.foreground:
        raise ConfigError(
            "image_classifier.background must be at most image_classifier.foreground, "
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
    _check_channels(data)


def _check_channels(data: DataConfig) -> None:
    """Lists of a number for each channel have the right length; black is below white."""
    for key in ("mean", "std", "value_low", "value_high"):
        values = getattr(data, key)
        alone = key.startswith("value") and values is not None and len(values) == 1
        if values is not None and len(values) != data.channels and not alone:
            raise ConfigError(
                f"data.{key} has {len(values)} numbers, but data.channels is {data.channels}: give "
                f"one for each channel{', or one for all' if key.startswith('value') else ''}"
            )
    low, high = data.value_low, data.value_high
    if (low is None) != (high is None):
        raise ConfigError(
            "data.value_low and data.value_high belong together, the values of black and white: "
            f"data.value_{'low' if low is None else 'high'} is missing"
        )
    if low is not None and high is not None:
        count = max(len(low), len(high))
        pairs = zip(low * count if len(low) == 1 else low, high * count, strict=False)
        if not all(black < white for black, white in pairs):
            raise ConfigError(
                f"data.value_low must be below data.value_high in each channel, but they are {low} "
                f"and {high}"
            )


def check_class_names(names: Sequence[str], key: str) -> None:
    """Raises ConfigError unless the names are different texts of one line, none of them empty.

    Names are compared as given: "Road" differs from "road". ``key`` says where they come from.
    """
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(
                f"{key}: the name of class {index} must be a text that is not empty, but is "
                f"{name!r}"
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
            f"{key} has names more than once: {listed(named)}. Results are listed by name: give "
            "each class a different one"
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
                raise ConfigError(f"{key} holds bytes that are not text: {value!r}")
        elif value is not None and "bounds" in f.metadata:
            _check_number(key, value, f)


def _check_number(key: str, value: Any, f: Field[Any]) -> None:
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
