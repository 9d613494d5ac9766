"""What is written for other programs and for people: JSON without bare nan, aligned tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

from cac_ext.train.runtime.json_files import json_text, read_json, write_json
from cac_ext.train.runtime.text_tables import aligned_table, markdown_table


def reject(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    content = {
        "a": [1.5, math.nan, (math.inf, -math.inf)],
        "b": {"c": math.nan},
        "d": "nan",
        "e": 7,
    }
    expected = {"a": [1.5, None, [None, None]], "b": {"c": None}, "d": "nan", "e": 7}
    assert json.loads(json_text(content), parse_constant=reject) == expected
    write_json(tmp_path / "content.json", content)
    assert read_json(tmp_path / "content.json") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["content.json"]


def test_a_file_that_cannot_be_written_keeps_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    write_json(path, {"a": 1})
    try:
        write_json(path, {"a": object()})
    except TypeError:
        pass
    else:
        raise AssertionError("an object is no JSON")
    assert read_json(path) == {"a": 1}


def test_columns_are_aligned() -> None:
    header, rows = ["name", "value"], [["a", "1.5"], ["longer", "12.25"]]
    assert aligned_table(header, rows).splitlines() == [
        "name    value",
        "------  -----",
        "a         1.5",
        "longer  12.25",
    ]
    assert markdown_table(header, rows).splitlines() == [
        "| name | value |",
        "| --- | ---: |",
        "| a | 1.5 |",
        "| longer | 12.25 |",
    ]
    assert aligned_table(header, []).splitlines() == ["name  value", "----  -----"]
