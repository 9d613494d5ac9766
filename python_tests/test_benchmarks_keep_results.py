"""However a benchmark ends early, its results so far are saved and marked incomplete."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from made_up_results import make_results

from benchmarks import __main__ as command_line
from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.documents.report import render_report
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.loss.case import LossCase
from benchmarks.loss.table import loss_table
from benchmarks.measure.results import Results, keeping

FIRST = Case("first", A=64, N=512, C=16, K=5)
SECOND = Case("second", A=64, N=1_200, C=16, K=5)


@pytest.fixture
def run_until(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `loss` on two cases until the given one, where the naive loss raises the given error."""
    monkeypatch.setitem(CASES, "two", [FIRST, SECOND])
    monkeypatch.setattr("benchmarks.measure.limits._SIZES", {"cpu": (1e8, 2**20)})
    output = tmp_path / "new" / "folder" / "out.json"
    words = ["loss", "--cases", "two", "--implementations", "ours:float32", "naive", "--no-memory"]
    words += ["--threads", "2", "--repeats", "2", "--output", str(output)]
    right = IMPLEMENTATIONS["naive"].loss

    def run(case: Case, call: int, error: BaseException) -> tuple[int, Path]:
        calls = []

        def loss(self, inputs):
            calls.append(len(inputs.negatives))
            if calls.count(case.N) == call:
                raise error
            return right(self, inputs)

        monkeypatch.setattr(IMPLEMENTATIONS["naive"], "loss", loss)
        return command_line.main(words), output

    return run


def test_an_interrupted_loss_run_keeps_its_rows(run_until, capsys) -> None:
    code, output = run_until(SECOND, 4, KeyboardInterrupt())
    assert code == 130
    results = Results.load(output)
    assert not results.complete
    for implementation in ("ours", "naive"):
        row = results.find("first", implementation, "float32", "both")
        assert len(row.samples) == 2
        assert row.share_of_matrix_rate > 0
        assert row.share_of_bandwidth > 0
    # The interrupted case keeps its timed calls too.
    timed = results.find("second", "naive", "float32", "both")
    assert len(timed.samples) == 1
    assert timed.share_of_matrix_rate > 0
    assert results.find("second", "naive", "float32", "forward") is None
    order = [(row.case, row.implementation, row.phase) for row in results.rows[:6]]
    phases = ("both", "forward", "backward")
    assert order == [("first", name, phase) for name in ("ours", "naive") for phase in phases]
    printed = capsys.readouterr()
    assert "INCOMPLETE" in printed.out
    assert f"written: {output}" in printed.out
    assert "interrupted" in printed.err
    assert "INCOMPLETE" in render_report({"partial": results})


def test_a_process_that_is_asked_to_end_keeps_its_rows(
    run_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    right = LossCase._later_rounds

    def later_rounds(self) -> None:
        if self.case.name == "second":
            signal.raise_signal(signal.SIGTERM)
        right(self)

    monkeypatch.setattr(LossCase, "_later_rounds", later_rounds)
    monkeypatch.setattr(sys, "argv", sys.argv)  # restored at the end
    # As in a separate process: with the arguments in sys.argv.
    monkeypatch.setattr(
        "benchmarks.__main__.main", lambda words: setattr(sys, "argv", ["", *words]) or main()
    )
    try:
        code, output = run_until(SECOND, 10**9, RuntimeError())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 130
    results = Results.load(output)
    assert not results.complete
    assert {row.case for row in results.rows if row.samples} == {"first", "second"}


def test_every_case_is_saved_as_soon_as_it_is_done(
    run_until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed has no later chance."""
    output = tmp_path / "new" / "folder" / "out.json"
    right = LossCase._select
    found = {}

    def select(self) -> None:
        if self.case.name == "second":
            found["then"] = Results.load(output)
        right(self)

    monkeypatch.setattr(LossCase, "_select", select)
    assert run_until(SECOND, 10**9, RuntimeError())[0] == 0
    assert not found["then"].complete
    assert {row.case for row in found["then"].rows} == {"first"}
    assert Results.load(output).complete


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    make_results(seed).save(path)
    before = path.read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        make_results(seed + 1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_in_a_late_round_costs_one_row(run_until) -> None:
    code, output = run_until(SECOND, 6, RuntimeError("late"))
    assert code == 0
    results = Results.load(output)
    assert results.complete
    assert results.find("second", "naive", "float32", "both").detail == "RuntimeError: late"
    assert results.find("second", "naive", "float32", "both").status == "failed"
    assert len(results.find("second", "ours", "float32", "both").samples) == 2


def test_an_error_of_the_benchmark_itself_keeps_the_rows(
    run_until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LossCase._select

    def select(self) -> None:
        if self.case.name == "second":
            raise ZeroDivisionError
        right(self)

    monkeypatch.setattr(LossCase, "_select", select)
    with pytest.raises(ZeroDivisionError):
        run_until(SECOND, 10**9, RuntimeError())
    results = Results.load(tmp_path / "new" / "folder" / "out.json")
    assert not results.complete
    assert {row.case for row in results.rows} == {"first"}


def test_a_run_interrupted_before_the_first_row_leaves_an_older_file_alone(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "a.json"
    make_results(seed).save(path)
    before = path.read_bytes()
    empty = Results.start("loss", {}, torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt), keeping(empty, str(path), loss_table):
        raise KeyboardInterrupt
    assert path.read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("benchmarks.loss.command.LossRun", None)  # nothing may be measured
    for output in (tmp_path / "file" / "out.json", tmp_path):
        assert main(["loss", "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --output {output} ")
        assert error.count("\n") == 1


def test_files_without_the_key_are_complete(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.json"
    make_results(seed).save(path)
    data = json.loads(path.read_text())
    del data["complete"], data["command"]
    path.write_text(json.dumps(data))
    assert Results.load(path).complete
    assert "INCOMPLETE" not in loss_table(Results.load(path))


TRAINING = ["augment.crop_size=33", "network.width=16", "method.projector_channels=16"]


def interrupt_at(call: int, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Raises KeyboardInterrupt in call number ``call`` of a function."""
    calls = []
    right = getattr(owner, name)

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return right(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


def test_an_interrupted_step_run_keeps_the_steps_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("omegaconf")
    from benchmarks.measure.memory import MemoryUse
    from benchmarks.step import training_step
    from benchmarks.step.run import StepRun

    monkeypatch.setattr(StepRun, "_memory", lambda *arguments: MemoryUse("ok", 2**20))
    # Two numbers of negatives, each with a warm-up and two steps.
    interrupt_at(6, monkeypatch, training_step.TrainingStep, "run")
    output = tmp_path / "step.json"
    words = ["--losses", "ours", "--negatives", "20", "50", "--batch", "2", "--repeats", "2"]
    words += ["--threads", "2", "--set", *TRAINING, "--output", str(output)]
    assert main(["step", *words]) == 130
    results = Results.load(output)
    assert not results.complete
    assert {row.case: len(row.samples) for row in results.rows} == {
        "negatives-20": 2,
        "negatives-50": 1,
    }
    assert results.settings["time_budget"] == 600
    assert results.settings["memory_budget_gib"] is None
    assert "INCOMPLETE" in capsys.readouterr().out


def test_an_interrupted_convergence_run_keeps_whole_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("omegaconf")
    pytest.importorskip("tensorboard")
    from benchmarks.convergence import command as convergence
    from benchmarks.convergence.training import LOSSES, Selection

    def train(name, arguments, seed):
        curve = {"loss": [1.0, 2.0], "loss_unsupervised": [1.0, 1.0]}
        made = [torch.ones(2, 4, dtype=torch.bool)] * 2, [torch.ones(12)] * 2
        return curve, Selection(LOSSES[name], None, *made)

    monkeypatch.setattr(convergence, "train_with", train)
    interrupt_at(3, monkeypatch, convergence, "train_with")
    output = tmp_path / "convergence.json"
    assert main(["convergence", "--threads", "2", "--output", str(output)]) == 130
    results = Results.load(output)
    assert not results.complete
    (curves,) = results.extra["curves"].values()
    assert [len(curve["loss"]) for curve in curves.values()] == [2, 2]
    assert results.extra["golden"]["deviation"] < 1e-5
    assert "INCOMPLETE" in capsys.readouterr().out
    assert "INCOMPLETE" in render_report({"partial": results})
