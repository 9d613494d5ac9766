"""Every key's documentation, for `cac-ext config --explain`: read from the schema at run time.

A key's meaning is the text below its field, which Python itself drops: the source has it.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_type_hints

from cac_ext.train.config import methods, schema
from cac_ext.train.config.bounds import Bounds
from cac_ext.train.config.loading import sections_of, to_mapping
from cac_ext.train.config.schema import Config
from cac_ext.train.config.typed_yaml import Hint, origin_of, unwrapped
from cac_ext.train.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_NEAREST = 3  # keys that an error offers
_TYPES: dict[Any, tuple[str, str]] = {  # one, several
    str: ("text", "texts"),
    bool: ("true or false", "truth values"),
    int: ("integer", "integers"),
    float: ("number", "numbers"),
}


class Key(NamedTuple):
    """A key of the configuration.

    Attributes:
        name: with its section, ``method.temperature``.
        section: ``method``; empty at the top level.
        allowed: type and bounds, as in ``number between 0 and 1``.
        default: as in YAML.
        meaning: its documentation, in one line.
    """

    name: str
    section: str
    allowed: str
    default: str
    meaning: str


def all_keys() -> list[Key]:
    """Every key that is not a section, in the order of the schema."""
    return _keys_of(Config, "")


def find_keys(patterns: Sequence[str]) -> list[Key]:
    """The keys that patterns name: a key, a section, or a shell pattern such as ``*.weights``.

    No pattern selects all keys.

    Raises:
        ConfigError: a pattern fits no key.
    """
    keys = all_keys()
    for pattern in patterns:
        if not any(_fits(key, pattern) for key in keys):
            raise ConfigError(f"there is no key {pattern!r}{_offer(pattern, keys)}")
    return [key for key in keys if not patterns or any(_fits(key, p) for p in patterns)]


def explain(
    patterns: Sequence[str], width: int, source: str = "", given: Config | None = None
) -> str:
    """The documentation of the keys that `find_keys` finds, by section.

    Args:
        patterns: see `find_keys`.
        width: columns to wrap to.
        source: name of ``given``.
        given: a configuration whose values are shown beside the defaults.
    """
    values = {} if given is None else flat_settings(to_mapping(given))
    lines: list[str] = []
    section = None
    for key in find_keys(patterns):
        if key.section != section:
            section = key.section
            lines += ["", *_wrapped(_title(section), width, "")]
        lines += ["", *_wrapped(f"{key.name}: {key.allowed}; default {key.default}", width, "  ")]
        lines += _wrapped(key.meaning, width, "      ", "      ")
        if given is not None:
            value = yaml_text(values[key.name])
            differs = "the default" if value == key.default else f"differs from {key.default}"
            lines += _wrapped(f"In {source}: {value} ({differs}).", width, "      ", "      ")
    return "\n".join(lines[1:])


def explain_in_markdown(patterns: Sequence[str] = ()) -> str:
    """The same documentation as a Markdown document, which is ``docs/settings.md`` for all keys."""
    lines = [
        "# Settings",
        "",
        "`cac-ext config --explain [KEY ...]` prints the same. Any key can be set in a YAML file",
        "or as `key=value` behind a command.",
    ]
    section = None
    for key in find_keys(patterns):
        if key.section != section:
            section = key.section
            name, _, summary = _title(section).partition(": ")
            lines += ["", f"## {name}", "", *_wrapped(summary, 100, "", ""), ""]
        text = f"* `{key.name}`: {key.allowed}; default `{key.default}`. {key.meaning}"
        lines += _wrapped(text, 100, "", "  ")
    return "\n".join(lines) + "\n"


@cache
def _meanings() -> dict[str, dict[str, str]]:
    """Class -> field -> the text below the field in the source."""
    found: dict[str, dict[str, str]] = {}
    for module in (schema, methods):
        for definition in ast.parse(inspect.getsource(module)).body:
            if isinstance(definition, ast.ClassDef):
                found[definition.name] = _texts_below_fields(definition.body)
    return found


def _texts_below_fields(body: Sequence[ast.stmt]) -> dict[str, str]:
    texts = {}
    for statement, following in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            texts[statement.target.id] = " ".join(following.value.value.split())
    return texts


def _keys_of(section: type[DataclassInstance], name: str) -> list[Key]:
    sections, hints = sections_of(section), get_type_hints(section)
    keys: list[Key] = []
    below: list[Key] = []
    for f in fields(section):
        full = f"{name}.{f.name}" if name else f.name
        if f.name in sections:
            below += _keys_of(sections[f.name], full)
        else:
            default = f.default if f.default_factory is MISSING else f.default_factory()
            meaning = _meanings()[section.__name__].get(f.name, "")
            keys.append(Key(full, name, _allowed(hints[f.name], f), yaml_text(default), meaning))
    return keys + below


def _allowed(hint: Hint, f: Field[Any]) -> str:
    """Type and bounds of a key's values."""
    inner, optional = unwrapped(hint)
    bounds: Bounds | Sequence[Bounds] | None = f.metadata.get("bounds")
    null = " or null" if optional else ""
    if origin_of(inner) is Literal:
        return f"{_either(get_args(inner))}{null}"
    if origin_of(inner) is dict:
        return "keys and values"
    if origin_of(inner) is list:
        each = f", each {bounds}" if bounds else ""
        return f"list of {_TYPES[get_args(inner)[0]][1]}{null}{each}"
    if origin_of(inner) is tuple:
        count, plural = len(get_args(inner)), _TYPES[get_args(inner)[0]][1]
        if isinstance(bounds, Bounds):
            pair = "[low, high], both" if f.metadata["ordered"] else f"list of {count} {plural},"
            return f"{pair} {bounds}"
        named = (f"number {i} {b}" for i, b in enumerate(bounds or (), 1))
        return f"list of {count} {plural}: {', '.join(named)}"
    return f"{_TYPES[inner][0]}{f' {bounds}' if bounds else ''}{null}"


def _either(choices: Sequence[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}"


def yaml_text(value: object) -> str:
    """A value as YAML shows it in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_text(inner)}' for key, inner in value.items())}}}"
    return str(value)


def flat_settings(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"method": {"loss": x}}`` as ``{"method.loss": x, ...}``, at every depth."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        flat[f"{prefix}{name}"] = value
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{name}.")
    return flat


def _title(section: str) -> str:
    """A section's name and the first sentence of its class."""
    part: type[DataclassInstance] = Config
    for name in filter(None, section.split(".")):
        part = sections_of(part)[name]
    summary = inspect.cleandoc(part.__doc__ or "").partition("\n\n")[0]
    return f"{section or 'top level'}: {' '.join(summary.split())}"


def _wrapped(text: str, width: int, first: str, following: str | None = None) -> list[str]:
    indent = f"{first}    " if following is None else following
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _fits(key: Key, pattern: str) -> bool:
    return fnmatchcase(key.name, pattern) or key.name.startswith(f"{pattern}.")


def _offer(pattern: str, keys: Sequence[Key]) -> str:
    """The nearest keys and sections: those with the same last word first."""
    names = [key.name for key in keys]
    sections = list(dict.fromkeys(key.section for key in keys if key.section))
    last = pattern.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(pattern, names + sections, n=_NEAREST)
    if near:
        return f" (did you mean {_either(near) if len(near) > 1 else near[0]}?)"
    return f"; the sections are {', '.join(sections)}"
