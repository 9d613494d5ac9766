"""From YAML files and ``key=value`` settings to a `Config`, and back.

`load` merges, in this order: the defaults of `schema.py`, the file named by the YAML's ``base:`` (a
shipped name or a path beside the file), the YAML, and ``key=value`` overrides. A key that does not
exist and a value of the wrong type are errors that name the key.

A value is read in the type of its key (`typed_yaml.py`). A text stays as typed, on the command
line and in YAML: ``data.root=2021_01_01``, ``007``, ``on``, ``1:30``. On the command line it is all
behind the first ``=``, with quotes, commas and brackets. ``null`` or nothing at all means none for
an optional text. ``${key}`` stands for the value of another key; ``\\${`` is a literal ``${``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cac_ext.train.config.checks import check_values
from cac_ext.train.config.schema import Config
from cac_ext.train.config.typed_yaml import hint_of, parse_document, parse_value
from cac_ext.train.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CONFIGS = resources.files("cac_ext") / "configs"


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a shipped name or a YAML file, with ``key=value`` overrides.

    Raises:
        ConfigError: no such file, an unknown key, a wrong type, or a value out of range.
    """
    merged = OmegaConf.structured(Config)
    for layer, source in _layers(name_or_path, None, ()):
        merged = _merge(merged, layer, source)
    for override in overrides:
        merged = _merge(merged, _parse_override(override), f"override {override!r}")
    return _finish(merged)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML; `load` reads it to an equal `Config`."""
    return OmegaConf.to_yaml(OmegaConf.create(_map_texts(to_mapping(config), _escape)))


def to_mapping(config: Config) -> dict[str, Any]:
    """The whole configuration as plain dicts and lists."""
    return _map_texts(asdict(config), lambda text: text)


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    files = _CONFIGS.iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing if no allowed name is near."""
    matches = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _layers(
    name_or_path: str, beside: Path | None, above: tuple[Path, ...]
) -> list[tuple[dict[str, Any], str]]:
    """The YAML and all its bases, the deepest base first.

    Args:
        name_or_path: of the YAML.
        beside: folder to which a base's path is relative, that of the file that names it.
        above: the files that the YAML is a base of.
    """
    if name_or_path in shipped():
        path = Path(str(_CONFIGS / f"{name_or_path}.yaml"))
    else:
        path = (beside or Path()) / name_or_path
    if not path.is_file():
        raise ConfigError(
            f"there is no configuration {name_or_path!r}{nearest(name_or_path, shipped())}: "
            f"give a path to a YAML file or one of {', '.join(shipped())}"
        )
    if path.resolve() in above:
        raise ConfigError(f"{path} is a base of itself: its 'base' must name another file")
    try:
        layer = parse_document(path.read_bytes(), Config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    base = layer.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the name of one configuration, but is {base}")
    bases = _layers(base, path.parent, (*above, path.resolve())) if base else []
    return [*bases, (layer, str(path))]


def _parse_override(override: str) -> dict[str, Any]:
    """``section.key=value`` as the nested dict that it stands for."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must look like key=value, but got {override!r}")
    parts = key.split(".")
    hint = hint_of(Config, parts)
    value: Any = text  # kept for an unknown key, which `_check_keys` reports
    if hint is None:
        for count in range(1, len(parts)):
            parent = hint_of(Config, parts[:count])
            if parent is not None and not is_dataclass(parent):
                raise ConfigError(
                    f"override {override!r}: there is no key {key}: "
                    f"{'.'.join(parts[:count])} takes one value and has no keys below it"
                )
    else:
        try:
            value = parse_value(text, hint, key)
        except ConfigError as error:
            raise ConfigError(f"override {override!r}: {error}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"cannot read the override {override!r}: {error}") from error
    for part in reversed(parts):
        value = {part: value}
    return value


def _merge(merged: DictConfig, layer: dict[str, Any], source: str) -> DictConfig:
    _check_keys(layer, Config, "", source)
    try:
        result = OmegaConf.merge(merged, layer)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {_reason(error)}") from error
    assert isinstance(result, DictConfig)
    return result


def _check_keys(
    layer: Mapping[str, Any], schema: type[DataclassInstance], prefix: str, source: str
) -> None:
    """Raises for a key the schema does not have, or a value where it has a section."""
    sections = sections_of(schema)
    allowed = [f.name for f in fields(schema)]
    for key, value in layer.items():
        if key not in allowed:
            hint = nearest(f"{prefix}{key}", _all_keys(Config)) or nearest(str(key), allowed)
            raise ConfigError(
                f"{source}: there is no key {prefix}{key}{hint}; "
                f"{prefix.rstrip('.') or 'the top level'} has {', '.join(allowed)}"
            )
        if key in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{source}: {prefix}{key} is a section and takes no value; set one of "
                    f"{', '.join(f'{prefix}{key}.{f.name}' for f in fields(sections[key]))}"
                )
            _check_keys(value, sections[key], f"{prefix}{key}.", source)


def sections_of(schema: type[DataclassInstance]) -> dict[str, type[DataclassInstance]]:
    """The fields of a schema that are sections, and the schema of each."""
    hints = get_type_hints(schema)
    return {f.name: hints[f.name] for f in fields(schema) if is_dataclass(hints[f.name])}


def _all_keys(schema: type[DataclassInstance], prefix: str = "") -> list[str]:
    """Every key, those of sections and the sections' names too."""
    sections, keys = sections_of(schema), []
    for f in fields(schema):
        if f.name in sections:
            keys += _all_keys(sections[f.name], f"{prefix}{f.name}.")
        keys.append(f"{prefix}{f.name}")
    return keys


def _finish(merged: DictConfig) -> Config:
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_reason(error)) from error
    assert isinstance(config, Config)
    check_values(config)
    return config


def _reason(error: OmegaConfBaseException) -> str:
    """The key and the first line of OmegaConf's message; the rest is about its own types."""
    text = str(error.msg or error).strip().partition("\n")[0]
    return f"{error.full_key}: {text}" if error.full_key else text


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same with each text changed; tuples become lists, as in YAML."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(inner, change) for inner in value]
    return value


def _escape(text: str) -> str:
    """A text that OmegaConf's interpolation turns into ``text``."""
    # Of backslashes in front of ${, two stand for one, and one more makes the ${ literal.
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
