"""Docstrings as Markdown: they are written in reStructuredText."""

from __future__ import annotations

import re
from typing import Any

import griffe

_TABLE = re.compile(
    r"^(?P<indent> *)=+(?: +=+)+\n(?P<head>.*)\n *=+(?: +=+)+\n(?P<body>(?:.*\n)+?) *=+(?: +=+)+$",
    re.MULTILINE,
)


class Markdown(griffe.Extension):
    """Rewrites the docstring of each object as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Tables, ``::`` before a code block, and lists inside of lists in the form of Markdown."""
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = re.sub(r"^  - ", "    - ", text, flags=re.MULTILINE)
    return _TABLE.sub(_table, text)


def _table(match: re.Match[str]) -> str:
    rows = [match["head"], *match["body"].splitlines()]
    cells = [re.split(r"  +", row.strip()) for row in rows]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(match["indent"] + "| " + " | ".join(row) + " |" for row in cells)
