"""YAML read by a schema: the type of a value comes from its key, not from its looks.

Plain YAML turns ``007``, ``1e3`` and ``1:30`` into numbers, ``on`` and ``no`` into truth values.
Here the schema decides: the value of a text key stays text, and so do numbers and truth values
until OmegaConf converts them. Only values below a dict (``network.options``) have no known type and
go by their looks: decimal numbers without leading zeros, ``true``, ``false`` and ``null``; all else
is text, and so is everything in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from cac_ext.train.errors import ConfigError

#: A type annotation of a schema.
Hint = Any

_NULLS = ("", "null", "Null", "NULL")
_TRUTH_VALUES = ("true", "yes", "on", "1", "false", "no", "off", "0")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_MERGE = "tag:yaml.org,2002:merge"
_KNOWN_TAGS = re.compile(r"tag:yaml\.org,2002:\w+")  # not .../python/..., which names a program


def origin_of(hint: Hint) -> Any:
    """`typing.get_origin`: list of ``list[str]``. mypy takes what that returns for a ParamSpec."""
    return get_origin(hint)


def unwrapped(hint: Hint) -> tuple[Hint, bool]:
    """``Optional[X]`` as (X, True), any other as itself and False."""
    if origin_of(hint) in (Union, UnionType) and NoneType in get_args(hint):
        (inner,) = [arg for arg in get_args(hint) if arg is not NoneType]
        return inner, True
    return hint, False


def hint_of(schema: type, parts: Sequence[str]) -> Hint | None:
    """The type of the key ``parts`` of a schema; None if there is no such key."""
    hint: Hint = schema
    for part in parts:
        if is_dataclass(hint):
            hints = get_type_hints(hint)
            if part not in hints:
                return None
            hint = hints[part]
        elif hint is Any or origin_of(hint) is dict:
            hint = Any
        else:
            return None
    return hint


def parse_value(text: str, hint: Hint, key: str) -> Any:
    """The value of a ``key=text`` of the command line.

    Raises:
        ConfigError, ValueError, yaml.YAMLError: it cannot be read.
    """
    inner, optional = unwrapped(hint)
    if optional and (text if inner is str else text.strip()) in _NULLS:
        return None
    if is_dataclass(inner) or origin_of(inner) in (list, tuple, dict):
        return _value(yaml.compose(text, Loader=yaml.SafeLoader), hint, key)
    if inner is Any:
        if re.fullmatch(r"""\[.*|\{.*|".*"|'.*'""", text, re.DOTALL):
            return _value(yaml.compose(text, Loader=yaml.SafeLoader), hint, key)
        return _free(text)
    return _scalar(text, inner, key)


def parse_document(content: bytes, schema: type) -> dict[str, Any]:
    """A YAML document with the keys of ``schema``; the values of other keys go by their looks.

    Raises:
        ConfigError, ValueError, yaml.YAMLError: it cannot be read.
    """
    node = yaml.compose(content, Loader=yaml.SafeLoader)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"the file must hold keys and values, but holds {kind}")
    return _value(node, schema, "")


def _value(node: yaml.Node | None, hint: Hint, key: str) -> Any:
    """The node's value in the type ``hint``; ConfigError if it cannot have that type."""
    inner, optional = unwrapped(hint)
    if node is None:
        return "" if not optional else None
    if not _KNOWN_TAGS.fullmatch(node.tag):
        raise ConfigError(f"{key} has the tag {node.tag}, which YAML does not define")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, inner, key)
    if isinstance(node, yaml.SequenceNode):
        if is_dataclass(inner) or inner is Any:
            return [_value(child, Any, key) for child in node.value]
        if origin_of(inner) not in (list, tuple):
            raise ConfigError(f"{key} takes one value, but got a list of {len(node.value)}")
        element = get_args(inner)[0]
        return [_value(child, element, f"each of {key}") for child in node.value]
    if not isinstance(node, yaml.ScalarNode):  # composing makes no other kind
        raise ConfigError(f"{key} cannot be read")
    plain = node.style is None
    if plain and optional and node.value in (*_NULLS, "~"):
        return None
    if is_dataclass(inner) or inner is Any or origin_of(inner) is dict:
        return _free(node.value) if plain else node.value
    if origin_of(inner) in (list, tuple) and "${" not in node.value:
        raise ConfigError(f"{key} takes a list such as [a, b], but got {node.value!r}")
    return _scalar(node.value, inner, key)


def _mapping(node: yaml.MappingNode, inner: Hint, key: str) -> dict[str, Any]:
    if not (is_dataclass(inner) or inner is Any or origin_of(inner) is dict):
        raise ConfigError(f"{key} takes one value, but got {len(node.value)} keys")
    hints = get_type_hints(inner) if is_dataclass(inner) else {}
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for name_node, child in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            raise ConfigError(f"a key below {key or 'the top level'} is not a text")
        name = name_node.value
        if name_node.tag == _MERGE and name_node.style is None:
            others = child.value if isinstance(child, yaml.SequenceNode) else [child]
            for other in others:
                if not isinstance(other, yaml.MappingNode):
                    raise ConfigError(f"<< below {key or 'the top level'} must be keys and values")
                merged = {**_mapping(other, inner, key), **merged}  # the first one wins
            continue
        full = f"{key}.{name}" if key else name
        if name in values:
            raise ConfigError(f"{full} is set twice")
        values[name] = _value(child, hints.get(name, Any), full)
    return {**merged, **values}


def _scalar(text: str, inner: Hint, key: str) -> str:
    """The text of a value that OmegaConf converts; ConfigError where it would misread it."""
    if inner is bool and text.strip().lower() not in _TRUTH_VALUES and "${" not in text:
        raise ConfigError(f"{key} must be true or false, but is {text!r}")
    if text == "???":  # OmegaConf's mark for a missing value
        raise ConfigError(f"{key} cannot be '???'")
    return text


def _free(text: str) -> Any:
    """A value without a known type, by its looks; see the module's docstring."""
    if text in (*_NULLS, "~"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text
