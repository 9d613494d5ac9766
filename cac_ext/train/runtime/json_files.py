"""All JSON is written here: valid by RFC 8259, in files that are whole or absent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cac_ext.train.runtime.whole_files import write_text_whole


def json_text(content: Any, indent: int | None = None) -> str:
    """The content as JSON, in one line without ``indent``; nan and infinities become null.

    JSON has no such numbers: Python would write them bare, and other readers would reject the file.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def write_json(path: Path, content: Any) -> None:
    """Writes `json_text` to a file; readers see all of it or none."""
    write_text_whole(path, json_text(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError and json.JSONDecodeError."""
    return json.loads(path.read_text(encoding="utf-8"))


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
