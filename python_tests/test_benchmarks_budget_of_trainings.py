"""Training steps and whole trainings end within the time budget; what does not fit has a reason."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")
pytest.importorskip("tensorboard")

from benchmarks.__main__ import main
from benchmarks.convergence import training
from benchmarks.documents.report import render_report
from benchmarks.measure import memory
from benchmarks.measure.results import Results
from benchmarks.step.run import StepRun
from benchmarks.step.training_step import step_config

TRAINING = [
    *("augment.crop_size=33", "network.width=16", "method.projector_channels=16"),
    *("schedule.labelled_batch=2", "schedule.unlabelled_batch=2"),
    *("data.synthetic.validation=1", "data.synthetic.labelled=2", "data.synthetic.unlabelled=2"),
]


def test_steps_that_do_not_fit_are_rows_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "run_child", None)  # would be called
    output = tmp_path / "step.json"
    words = ["step", "--time-budget", "1e-3", "--negatives", "20", "50", "--batch", "2"]
    words += ["--threads", "2", "--set", *TRAINING[:3], "--output", str(output)]
    assert main([*words, "--memory-budget", "1"]) == 0
    results = Results.load(output)
    assert [(row.case, row.implementation) for row in results.rows] == [
        (f"negatives-{count}", loss)
        for count in (20, 50)
        for loss in ("no loss", "ours", "official")
    ]
    assert {(row.status, row.detail) for row in results.rows} == {
        ("skipped", "the time budget was used up")
    }
    assert {item["stopped_by"] for item in results.extra["largest"]} == {"time budget"}
    assert "the time budget was used up" in render_report({"step": results})


@pytest.mark.parametrize(
    ("left", "samples", "warmed_up", "detail"),
    [
        (100.0, 2, True, ""),
        (0.8, 1, False, ""),
        (0.3, 0, True, "the time budget was used up; a step takes about 0.5 s"),
    ],
)
def test_a_step_is_begun_only_if_it_fits(
    left: float,
    samples: int,
    warmed_up: bool,
    detail: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    deadline = 1_000.0
    use = memory.MemoryUse("ok", 2**20, seconds=0.5)

    def measure_memory(*arguments):
        clock[0] = deadline - left
        return use

    def timed(self, training_step, row):
        clock[0] += 0.5
        return 0.5

    monkeypatch.setattr(StepRun, "_memory", measure_memory)
    monkeypatch.setattr(StepRun, "_time", timed)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run = StepRun.__new__(StepRun)
    run.arguments = type("Arguments", (), {"losses": ["ours"], "batch": 2, "seed": 0, "repeats": 2})
    run.config, run.device = step_config("synthetic", TRAINING[:3]), torch.device("cpu")
    run.results = Results.start("step", {}, run.device)
    run.steps = type("Quiet", (), {"begin": lambda *a: None, "update": lambda *a: None})()
    run._run_row(20, deadline)
    (row,) = run.results.rows
    assert (len(row.samples), row.warmed_up, row.detail) == (samples, warmed_up, detail)
    assert row.status == ("ok" if samples else "skipped")


def test_trainings_that_do_not_fit_are_named(tmp_path: Path, capsys) -> None:
    output = tmp_path / "convergence.json"
    words = ["convergence", "--iterations", "100000", "--time-budget", "60", "--seeds", "1"]
    words += ["--threads", "1", "--output", str(output), "--set", *TRAINING]
    start = time.monotonic()
    assert main(words) == 0
    assert time.monotonic() - start < 30  # as soon as it is clear
    results = Results.load(output)
    assert results.complete
    assert results.extra["curves"] == {}
    first, others = results.extra["skipped"]
    assert first.startswith("training with reference float64, seed 0: would take about ")
    assert "of the time budget are left" in first
    assert others == "other trainings with seed 0: no float64 curve to compare with"
    assert f"SKIPPED {first}" in capsys.readouterr().out
    assert "SKIPPED" in render_report({"none": results})
    assert json.loads(output.read_text())["settings"]["time_budget"] == 60


def test_a_training_that_fits_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def train(steps: int, deadline: float) -> None:
        pace = training.Pace(steps, deadline)
        pace.step()  # as the trainer tries the loss
        clock[0] = 10.0  # the first step warms up
        for _ in range(steps):
            pace.step()
            clock[0] += 1.0

    train(steps=20, deadline=31.5)
    clock[0] = 0.0
    with pytest.raises(training.OutOfTimeError, match="would take about 20 s, and"):
        train(steps=20, deadline=25.0)
    assert clock[0] < 15  # as soon as it was clear
