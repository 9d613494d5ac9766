"""A run ends within its time budget, and gives a reason for everything that did not fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.documents.report import render_report
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.implementations.official import official_loss
from benchmarks.loss import case as loss_case
from benchmarks.loss import check as loss_check
from benchmarks.loss.check import FIRST_N
from benchmarks.loss.correctness import Check
from benchmarks.loss.table import loss_table
from benchmarks.measure import memory
from benchmarks.measure.children import Ended
from benchmarks.measure.results import Results

ROOT = Path(__file__).parent.parent
SMALL = Case("small", A=64, N=1_500, C=16, K=5)
LARGE = Case("large", A=64, N=40_000, C=16, K=5)


@pytest.fixture
def run_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command on made-up cases within a budget; returns results and seconds."""
    monkeypatch.setitem(CASES, "made-up", [SMALL, LARGE])
    monkeypatch.setattr("benchmarks.measure.limits._SIZES", {"cpu": (1e8, 2**20)})

    def run(budget: float, *arguments: str) -> tuple[Results, float]:
        output = tmp_path / "out.json"
        words = ["loss", "--cases", "made-up", "--time-budget", str(budget), "--threads", "2"]
        start = time.monotonic()
        assert main([*words, "--repeats", "2", "--output", str(output), *arguments]) == 0
        return Results.load(output), time.monotonic() - start

    return run


def slow_down(monkeypatch: pytest.MonkeyPatch, name: str, seconds_of) -> list[int]:
    """Makes the implementation slower by ``seconds_of(negatives)``.

    Returns the numbers of negatives of its calls.
    """
    calls: list[int] = []
    right = IMPLEMENTATIONS[name].loss

    def loss(self, inputs):
        calls.append(len(inputs.negatives))
        time.sleep(seconds_of(calls[-1]))
        return right(self, inputs)

    monkeypatch.setattr(IMPLEMENTATIONS[name], "loss", loss)
    return calls


def test_without_time_every_row_says_so_and_nothing_is_called(
    run_loss, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    calls = slow_down(monkeypatch, "ours", lambda count: 0)
    monkeypatch.setattr(memory, "run_child", None)  # would be called
    results, seconds = run_loss(1e-3, "--implementations", "ours:float32", "tiled:bfloat16")
    assert seconds < 10
    assert not calls
    assert results.complete
    found = {(row.case, row.implementation, row.dtype, row.status) for row in results.rows}
    contenders = [("ours", "float32"), ("tiled", "bfloat16")]
    assert found == {
        (case, *contender, "skipped") for case in ("small", "large") for contender in contenders
    }
    assert all("time budget" in row.detail for row in results.rows)
    printed = capsys.readouterr().out
    assert printed.count("the time budget was used up") >= 4
    assert "small, ours float32: " in printed
    assert "small" in render_report({"nothing": results})


def test_a_case_whose_inputs_do_not_fit_is_never_made(
    run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = Case("huge", N=10**11)  # 48 TiB
    monkeypatch.setitem(CASES, "made-up", [SMALL, huge])
    results, seconds = run_loss(60, "--implementations", "ours:float32", "--no-memory")
    assert seconds < 60
    assert results.find("small", "ours", "float32", "both").status == "ok"
    row = results.find("huge", "ours", "float32", "both")
    assert row.status == "skipped"
    assert "its inputs alone would take about" in row.detail
    assert "huge: A=6,400 N=100,000,000,000" in loss_table(results)


def test_a_case_whose_inputs_take_too_much_memory_is_a_row(
    run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "made-up", [SMALL, Case("wide", A=64, N=400_000, C=128, K=5)])
    results, _ = run_loss(
        60, "--implementations", "ours:float32", "--no-memory", "--memory-limit", "0.1"
    )
    assert results.find("small", "ours", "float32", "both").status == "ok"
    row = results.find("wide", "ours", "float32", "both")
    assert row.status == "out_of_memory"
    assert row.detail.startswith("its inputs alone: ")


def test_a_part_tells_what_the_whole_would_cost(run_loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival that is quick where it is checked and slow where it is timed."""
    part = LARGE.N * loss_case.PART
    seconds = {part: 0.5, LARGE.N: 8.0}
    calls = slow_down(monkeypatch, "naive", lambda count: seconds.get(count, 0.0))
    results, taken = run_loss(6, "--implementations", "ours:float32", "naive", "--no-memory")
    assert taken < 6
    assert part in calls
    assert LARGE.N not in calls  # nothing could have interrupted it
    row = results.find("large", "naive", "float32", "both")
    assert row.status == "skipped"
    predicted = float(re.match(r"would take about (\S+) s a run, and ", row.detail)[1])
    assert predicted == pytest.approx(8, rel=0.3)
    assert results.find("large", "ours", "float32", "both").status == "ok"


def test_a_slow_check_is_not_begun(run_loss, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slow_down(monkeypatch, "naive", lambda count: count * 2e-4)
    results, _ = run_loss(4, "--implementations", "ours:float32", "naive", "--no-memory")
    assert set(calls) == {FIRST_N}
    row = results.find("small", "naive", "float32", "both")
    assert row.status == "skipped"
    assert "checking its result would take about" in row.detail


def test_memory_processes_leave_time_to_measure(run_loss, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = []

    def run_child(module, request, timeout):
        timeouts.append(timeout)
        return Ended(None)

    monkeypatch.setattr(memory, "run_child", run_child)
    results, _ = run_loss(40, "--implementations", "ours:float32", "tiled:float32")
    assert len(timeouts) == 4
    assert max(timeouts) <= 40 * loss_case.MEMORY_SHARE
    assert {row.status for row in results.rows} == {"timed_out"}
    # Without time to start a process, only the calls are timed.
    timeouts.clear()
    results, seconds = run_loss(6, "--implementations", "ours:float32", "tiled:float32")
    assert seconds < 7
    assert not timeouts
    for case in ("small", "large"):
        for name in ("ours", "tiled"):
            assert results.find(case, name, "float32", "both").status == "ok"
            sentence = f"{case}, memory of {name} float32: would take about 4 s, and "
            assert any(skip.startswith(sentence) for skip in results.extra["skipped"])


def test_a_compiler_that_hangs_is_ended_with_its_share_of_the_time(
    run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []
    calls = slow_down(monkeypatch, "ours", lambda count: 0)

    def run_child(module, request, timeout):
        timeouts.append(timeout)
        assert calls  # it was checked before any compiler began
        return Ended(None)

    monkeypatch.setattr(loss_check, "run_child", run_child)
    rivals = ["official-compiled:float32", "flex-attention:float32", "ours:float32"]
    results, _ = run_loss(30, "--implementations", *rivals, "--no-memory")
    assert max(timeouts) < 30 / 4
    for name in ("official-compiled", "flex-attention"):
        row = results.find("small", name, "float32", "both")
        assert row.status == "skipped"
        assert "not compiled and checked after 7 s" in row.detail
    assert results.find("small", "ours", "float32", "both").samples


def test_a_compilers_seconds_count_where_it_compiles_again(
    run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two sizes, with and without gradient, would take a minute."""
    check = Check("official-compiled", "float32", 160, 9_000, 16, 5, 0.0, 0.0, 1.0, 1.0)
    answer = {"check": check.to_json(), "seconds": 1e-3, "first_seconds": 60.0}
    monkeypatch.setattr(loss_check, "run_child", lambda *_: Ended(0, json.dumps(answer)))
    results, _ = run_loss(30, "--implementations", "official-compiled:float32", "--no-memory")
    (first, second) = results.rows
    for row in (first, second):
        assert row.status == "skipped"
        assert "and 120 s to compile, and" in row.detail


def test_what_compiles_is_not_compiled_for_a_part(
    run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Check("official-compiled", "float32", 160, 9_000, 16, 5, 0.0, 0.0, 1.0, 1.0)
    answer = {"check": check.to_json(), "seconds": 1e-3, "first_seconds": 0.1}
    monkeypatch.setattr(loss_check, "run_child", lambda *_: Ended(0, json.dumps(answer)))
    rival = IMPLEMENTATIONS["official-compiled"]
    monkeypatch.setattr(rival, "__init__", lambda self: setattr(self, "_compiled", official_loss))
    calls = slow_down(monkeypatch, "official-compiled", lambda count: 0)
    results, _ = run_loss(30, "--implementations", "official-compiled:float32", "--no-memory")
    assert {row.status for row in results.rows} == {"ok"}
    assert set(calls) == {SMALL.N, LARGE.N}


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (Ended(0, '{"error": "BackendCompilerFailed: no compiler"}'), "no compiler"),
        (Ended(1, "", "Traceback\nImportError: no such thing\n"), "ImportError: no such thing"),
        (Ended(-9), "exit code -9"),
    ],
)
def test_a_compiler_that_fails_is_a_row(
    ended: Ended, reason: str, run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_check, "run_child", lambda *_: ended)
    results, _ = run_loss(30, "--implementations", "official-compiled:float32", "--no-memory")
    assert {row.status for row in results.rows} == {"skipped"}
    assert all(reason in row.detail for row in results.rows)


#: Runs the command as a user does. One implementation hangs, but only at full size.
STUCK = """
import sys, time
import benchmarks.measure.limits as limits
import benchmarks.measure.steps as steps
from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.implementations import IMPLEMENTATIONS

limits._SIZES = {"cpu": (1e8, 2**20)}
shown = []
begin = steps.Steps.begin
steps.Steps.begin = lambda self, step: shown.append(self) or begin(self, step)
CASES["two"] = [Case("first", A=64, N=512, C=16, K=5), Case("second", A=64, N=512, C=16, K=5)]
right = IMPLEMENTATIONS["naive"].loss
calls = []

def loss(self, inputs):
    calls.append(len(inputs.negatives))
    if calls.count(512) == 3:  # after a warm-up and a timed call
        shown[-1]._last_moment = 0.0  # its time seems to have passed long ago
        time.sleep(600)
    return right(self, inputs)

IMPLEMENTATIONS["naive"].loss = loss
sys.argv[1:] = ["loss", "--cases", "two", "--implementations", "ours:float32", "naive"]
sys.argv += ["--no-memory", "--repeats", "2", "--time-budget", "60", "--output", "out.json"]
sys.exit(main())
"""


def test_a_call_that_never_comes_back_ends_the_run_with_all_rows(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", STUCK],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    assert "first: naive float32" in done.stderr
    results = Results.load(tmp_path / "out.json")
    assert not results.complete
    timed = results.find("first", "naive", "float32", "both")
    assert timed.status == "ok"
    assert len(timed.samples) == 1
    assert results.find("first", "ours", "float32", "both").samples
    for name in ("ours", "naive"):
        row = results.find("second", name, "float32", "both")
        assert row.status == "timed_out"
        assert row.detail == "the run was ended: first: naive float32"
    assert "SKIPPED first: naive float32: not done after" in done.stdout
    assert "INCOMPLETE" in done.stdout
    assert "written: out.json" in done.stdout
