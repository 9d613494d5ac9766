"""A result file holds what a reader needs to repeat the run, and no folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from made_up_results import make_results

from benchmarks.__main__ import main
from benchmarks.arguments import command_line, without_folders
from benchmarks.cases import CASES, Case
from benchmarks.documents.report import render_report
from benchmarks.measure.machine import describe_process
from benchmarks.measure.results import Results


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/results/loss.json", "loss.json"),
        ("~/results/loss.json", "loss.json"),
        ("--output=/home/me/loss.json", "--output=loss.json"),
        ("data.root=/data/with space/voc", "data.root=voc"),
        ("data.lists=[/a/b/one.txt,/c/two.txt]", "data.lists=[one.txt,two.txt]"),
        ("results/loss.json", "results/loss.json"),
        ("data.labelled_ratio=1/8", "data.labelled_ratio=1/8"),
        ("n-500000", "n-500000"),
    ],
)
def test_folders_of_this_machine_are_left_out(given: str, kept: str) -> None:
    assert without_folders(given) == kept


def test_the_command_is_a_line_for_a_shell() -> None:
    words = ["step", "--losses", "no loss", "ours", "--output", "/x/y.json"]
    assert command_line(words) == (
        "python -m benchmarks step --losses 'no loss' ours --output y.json"
    )


def test_what_changes_speed_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OMP_", "KMP_", "TORCH", "PYTORCH", "MKL_", "GOMP_")):
            monkeypatch.delenv(name)
    for name, value in {
        "OMP_NUM_THREADS": "2",
        "KMP_BLOCKTIME": "0",
        "MALLOC_CONF": "thp:always",
        "THP_MEM_ALLOC_ENABLE": "1",
        "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
        "LD_PRELOAD": "/opt/lib/libjemalloc.so.2:/usr/lib/libiomp5.so",
        "TORCH_HOME": "/home/me/.cache",
        "UNRELATED": "/home/me",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getscheduler", lambda process: os.SCHED_FIFO, raising=False)
    described = describe_process()
    expected = {
        "KMP_BLOCKTIME": "0",
        "LD_PRELOAD": "libjemalloc.so.2 libiomp5.so",
        "MALLOC_CONF": "thp:always",
        "OMP_NUM_THREADS": "2",
        "THP_MEM_ALLOC_ENABLE": "1",
        "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    }
    assert expected.items() <= described["environment"].items()
    assert not {"TORCH_HOME", "UNRELATED"} & described["environment"].keys()
    assert described["scheduling_policy"] == "SCHED_FIFO"
    monkeypatch.setattr(os, "sched_getscheduler", lambda process: os.SCHED_OTHER)
    assert "scheduling_policy" not in describe_process()


def test_the_file_and_the_report_say_how_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "tiny", [Case("tiny", A=16, N=64, C=8, K=3)])
    monkeypatch.setattr("benchmarks.measure.limits._SIZES", {"cpu": (1e8, 2**20)})
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    output = tmp_path / "out.json"
    words = ["loss", "--cases", "tiny", "--implementations", "ours:float32", "--no-memory"]
    words += ["--repeats", "1", "--memory-limit", "3", "--time-budget", "50", "--threads", "2"]
    assert main([*words, "--output", str(output)]) == 0
    assert str(tmp_path) not in output.read_text()
    results = Results.load(output)
    assert results.command == f"python -m benchmarks {' '.join(words)} --output out.json"
    assert results.settings["time_budget"] == 50
    assert results.settings["memory_limit_gib"] == 3
    assert results.settings["memory"] is False
    assert results.machine["environment"]["KMP_BLOCKTIME"] == "7"
    assert "--memory-limit 3" in render_report({"out": results})


def test_an_older_file_is_reported_without_a_command(seed: int) -> None:
    results = make_results(seed)
    assert results.command == ""
    assert "<dt>command</dt>" not in render_report({"old": results})
    assert torch.__version__ in render_report({"old": results})
