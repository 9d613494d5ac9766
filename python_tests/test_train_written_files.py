"""What is written for other programs and for people: JSON without bare nan, aligned tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cac_ext.train.evaluate import absent_names
from cac_ext.train.runs.log import RunLog, read_metrics
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


def test_a_log_of_losses_that_are_not_finite_is_strict_json_and_is_continued(
    tmp_path: Path,
) -> None:
    log = tmp_path / "metrics.jsonl"
    with RunLog(tmp_path, "train", 0, 3, progress=False) as first:
        first.train(1, {"loss": math.nan, "loss_supervised": 2.0}, images=4)
        first.evaluation(1, math.nan, {"cat": math.nan, "dog": 0.5})
        first.train(2, {"loss": -math.inf, "loss_supervised": 1.0}, images=4)
        first.train(3, {"loss": 1.0, "loss_supervised": 1.0}, images=4)
    # An earlier version wrote nan as Python does.
    log.write_text(log.read_text() + '{"iteration": 2, "split": "train", "loss": NaN}\n')
    with RunLog(tmp_path, "train", 2, 3, progress=False) as resumed:
        resumed.train(3, {"loss": 0.5, "loss_supervised": 0.5}, images=4)

    lines = [json.loads(line, parse_constant=reject) for line in log.read_text().splitlines()]
    assert lines == read_metrics(log)
    assert [(line["iteration"], line.get("loss")) for line in lines] == [
        *((1, None), (1, None), (2, None), (2, None), (3, 0.5))
    ]
    evaluated = {"miou": None, "class_iou": {"cat": None, "dog": 0.5}, "absent_classes": ["cat"]}
    assert lines[1] == {"iteration": 1, "split": "validation", **evaluated}
    assert absent_names(lines[1]["class_iou"]) == ["cat"]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    losses = [event.value for event in board.Scalars("train/loss")]
    assert math.isnan(losses[0])
    assert losses[1:] == [-math.inf, 0.5]


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
