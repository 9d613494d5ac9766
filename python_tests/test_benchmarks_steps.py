"""Signs of life come during the longest call, and a call that does not return is ended."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.measure.children import Ended, run_child
from benchmarks.measure.results import Kept
from benchmarks.measure.steps import Steps


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and checks come much faster than for people."""
    monkeypatch.setattr(Steps, "LINE_SECONDS", 0.1)
    monkeypatch.setattr(Steps, "PERIOD", 0.02)


def forever() -> float:
    return time.monotonic() + 1e6


@pytest.mark.usefixtures("impatient")
def test_a_file_gets_lines_while_a_single_call_lasts() -> None:
    file = io.StringIO()
    with Steps(3, forever(), unit="step", file=file) as steps:
        assert file.getvalue().startswith("start: 0/3 ")  # at once
        steps.begin("voc: official bf16")
        time.sleep(1.0)
        steps.update()
    text = file.getvalue()
    assert "\r" not in text
    lines = [line for line in text.splitlines() if line.startswith("voc: official bf16")]
    assert 4 <= len(lines) <= 11
    assert " 1/3 " in lines[-1]


@pytest.mark.usefixtures("impatient")
def test_a_long_step_says_how_long_it_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    with Steps(1, forever(), file=file) as steps:
        steps.begin("compiling")
        steps._began -= 75  # as if it had begun then
        time.sleep(0.3)
    assert re.search(r"^compiling, 75 s: 0/1 ", file.getvalue(), re.M)


@pytest.mark.usefixtures("impatient")
def test_a_terminal_gets_a_bar_that_moves_while_a_single_call_lasts() -> None:
    ours, its = os.openpty()
    received = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux reports thus that the other end was closed
            while data := os.read(ours, 4096):
                received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    with open(its, "w", encoding="utf-8") as screen, Steps(2, forever(), file=screen) as steps:
        steps.begin("memory of naive")
        time.sleep(0.5)
        screen.flush()
    reader.join()
    os.close(ours)
    assert received.decode().count("\rmemory of naive:   0%|") >= 5


@pytest.mark.usefixtures("impatient")
def test_a_call_that_does_not_come_back_is_given_up_and_nothing_is_measured_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.measure.steps.LEAST_GRACE", 0.2)
    given_up: list[tuple[str, float]] = []
    went_on, stop = threading.Event(), threading.Event()

    def measure() -> None:
        steps.begin("stuck")
        stop.wait()  # returns while the results are being written
        steps.begin("next")
        went_on.set()

    steps = Steps(
        2, time.monotonic() + 0.1, lambda *step: given_up.append(step), file=io.StringIO()
    )
    threading.Thread(target=measure, daemon=True).start()
    time.sleep(0.15)
    assert not given_up  # a little later than predicted is no reason
    while not given_up:
        time.sleep(0.02)
    ((step, seconds),) = given_up
    assert step == "stuck"
    assert 0.2 < seconds < 5
    stop.set()
    assert not went_on.wait(0.2)


def test_no_thread_is_left_behind() -> None:
    with Steps(1, forever(), file=io.StringIO()):
        assert "steps" in {thread.name for thread in threading.enumerate()}
    deadline = time.monotonic() + 5
    while "steps" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


#: Starts a grandchild that shares its output, like a compiler, and waits with it.
HANGING = """
import subprocess, sys, time, json

request = json.loads(sys.argv[1])
grandchild = subprocess.Popen(["sleep", "600"])
with open(request["pids"], "w") as file:
    file.write(str(grandchild.pid))
if request["hang"]:
    time.sleep(600)
grandchild.kill()
print("done")
sys.exit(request["code"])
"""


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module `hanging_child` can be run; the file will hold its grandchild's process id."""
    (tmp_path / "hanging_child.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return tmp_path / "pids"


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with contextlib.suppress(OSError):
            # Perhaps no process takes its exit code.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def test_a_child_is_ended_with_all_that_it_started(hanging: Path) -> None:
    start = time.monotonic()
    request = {"pids": str(hanging), "hang": True, "code": 0}
    assert run_child("hanging_child", request, timeout=1.5) == Ended(None)
    assert time.monotonic() - start < 10
    assert_ends(int(hanging.read_text()))


def test_ctrl_c_ends_a_child_with_all_that_it_started(hanging: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_child("hanging_child", {"pids": str(hanging), "hang": True, "code": 0})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_ends(int(hanging.read_text()))


def test_a_child_in_time_keeps_its_code_and_output(hanging: Path) -> None:
    request = {"pids": str(hanging), "hang": False, "code": 3}
    ended = run_child("hanging_child", request, timeout=1e30)
    assert (ended.code, ended.output) == (3, "done\n")


def test_results_are_finished_once(tmp_path: Path) -> None:
    class Table:
        count = 0

        def __call__(self, results: object) -> str:
            self.count += 1
            return ""

    class Empty:
        complete, empty, rows, machine = True, True, (), {}

    table = Table()
    kept = Kept(Empty(), None, table)
    kept.finish()
    kept.finish()
    assert table.count == 1
