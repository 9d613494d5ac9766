"""Docstrings as Markdown: tables and code blocks are written in reStructuredText there."""

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
    """Simple tables become tables of Markdown, and ``::`` before a code block a colon."""
    return _TABLE.sub(_table, re.sub(r"::$", ":", text, flags=re.MULTILINE))


def _table(match: re.Match[str]) -> str:
    rows = [match["head"], *match["body"].splitlines()]
    cells = [re.split(r"  +", row.strip()) for row in rows]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(match["indent"] + "| " + " | ".join(row) + " |" for row in cells)
