"""The engine under `compare` and `ablate`: records after each run, in valid JSON."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cac_ext.train.config import load
from cac_ext.train.errors import DataError
from cac_ext.train.experiments import engine
from cac_ext.train.experiments.engine import RESULTS, RunId, run_plan


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Label and folder of each run; instead of training, the run "broken" fails."""
    runs: list[tuple[str, str]] = []

    def train(config: object, folder: Path, *, label: str, **options: object) -> SimpleNamespace:
        assert options["resume"]
        runs.append((label, folder.name))
        if folder.name.startswith("broken"):
            raise DataError("no such image")
        return SimpleNamespace(miou=0.5, class_iou={"road": 0.5, "car": float("nan")})

    monkeypatch.setattr(engine, "train", train)
    monkeypatch.setattr(engine, "prepare", lambda config, folders, **options: config)
    monkeypatch.setattr(engine, "require_labels_of_runs", lambda folders, **options: None)
    return runs


def test_records_are_written_after_each_run(trained: list[tuple[str, str]], tmp_path: Path) -> None:
    config = load("synthetic", ["method.name=sup_only"])
    runs = {RunId("first", 3): config, RunId("broken", 3): config}
    seen: list[list[tuple[str, int]]] = []
    with pytest.raises(DataError, match="no such image"):
        run_plan(
            runs,
            tmp_path,
            lambda run, config, score: {"run": str(run), **score},
            earlier={RunId("earlier", 1): {"run": "earlier seed 1", "miou": 0.25}},
            after_each=lambda run, result, records: seen.append(list(records)),
        )
    assert trained == [
        ("[1/2] first seed 3", "first-seed3"),
        ("[2/2] broken seed 3", "broken-seed3"),
    ]
    assert seen == [[("earlier", 1), ("first", 3)]]
    records = json.loads((tmp_path / RESULTS).read_text(), parse_constant=pytest.fail)
    assert records == [
        {"run": "earlier seed 1", "miou": 0.25},
        {
            "run": "first seed 3",
            "miou": 0.5,
            "class_iou": {"road": 0.5, "car": None},
            "absent_classes": ["car"],
        },
    ]
