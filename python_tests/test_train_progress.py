"""Progress is a bar on a terminal and a few lines in a file, whatever the command."""

from __future__ import annotations

import ast
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path

import numpy as np
import pytest
import tqdm.std
from PIL import Image
from tiny_run import TINY_RUN

from cac_ext.train.cli.main import main
from cac_ext.train.runtime.progress import Progress

ROOT = Path(__file__).parent.parent
TINY = [
    *TINY_RUN,
    "data.synthetic.validation=25",
    "schedule.epochs=1",
    "schedule.iterations_per_epoch=20",
    "schedule.labelled_batch=1",
    "method.unsupervised_weight=0",
]


class Clock:
    """Time that passes only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tqdm.std, "time", made)
    return made


def lines_of(clock: Clock, count: int, seconds: float, **options) -> list[str]:
    """The lines that a loop of ``count`` items, each taking ``seconds``, writes to a file."""
    file = io.StringIO()
    for _ in Progress(range(count), "evaluate", unit="image", file=file, **options):
        clock.now += seconds
    text = file.getvalue()
    assert "\r" not in text
    assert text.endswith("\n") or not text
    return text.splitlines()


def test_a_file_gets_a_line_every_ten_seconds_and_the_last(clock: Clock) -> None:
    lines = lines_of(clock, count=401, seconds=0.125)
    done = [int(re.match(r"evaluate: (\d+)/401 \[00:", line)[1]) for line in lines]
    assert done == [80, 160, 240, 320, 400, 401]


@pytest.mark.parametrize(("seconds", "most"), [(1e-3, 10), (10.0, 800)])
def test_a_long_loop_makes_hundreds_of_lines_at_most(
    clock: Clock, seconds: float, most: int
) -> None:
    lines = lines_of(clock, count=50_000, seconds=seconds)  # 50 seconds and 6 days
    assert 3 < len(lines) < most
    assert lines[-1].startswith("evaluate: 50000/50000 ")


def test_a_short_loop_leaves_one_line_or_none(clock: Clock) -> None:
    assert len(lines_of(clock, count=1_000, seconds=1e-3)) == 1
    assert lines_of(clock, count=1_000, seconds=1e-3, leave=False) == []
    assert lines_of(clock, count=1_000, seconds=1e-3, disable=True) == []
    # After earlier lines, the last one shows how the loop ended.
    ended = lines_of(clock, count=15, seconds=1.0, leave=False)
    assert [line.split()[1] for line in ended] == ["10/15", "15/15"]


def test_a_loop_that_fails_says_how_far_it_came(clock: Clock) -> None:
    file = io.StringIO()
    with suppress(ZeroDivisionError):
        for number in Progress(range(8), "predict", file=file):
            1 / (3 - number)
    assert file.getvalue().startswith("predict: 3/8 ")


def test_what_is_shown_beside_the_count_stands_in_the_line(clock: Clock) -> None:
    file = io.StringIO()
    with Progress(total=40, initial=10, desc="run", unit="it", file=file) as bar:
        bar.set_postfix({"loss": "1.25"}, refresh=False)
        clock.now += 20
        bar.update(20)
    assert re.fullmatch(r"run: 30/40 \[00:20<00:\d\d, .*it/s, loss=1\.25\]\n", file.getvalue())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("progress") / "run"
    assert main(["train", "synthetic", *TINY, "--folder", str(folder)]) == 0
    return folder


def _pictures(folder: Path) -> str:
    folder.mkdir()
    for number in range(25):
        Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(folder / f"{number}.png")
    return str(folder)


#: Command -> its arguments, made from a run folder and an empty folder.
COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "train": lambda run, to: ["train", "synthetic", *TINY, "--folder", str(to / "new")],
    "compare": lambda run, to: [
        *("compare", "synthetic", "--methods", "sup_only", "--seeds", "0"),
        *("--folder", str(to / "all"), *TINY),
    ],
    "evaluate": lambda run, to: ["evaluate", str(run), "--output", str(to / "evaluation")],
    "predict": lambda run, to: [
        *("predict", str(run), _pictures(to / "images"), "--output", str(to / "masks")),
    ],
    "data check": lambda run, to: ["data", "check", "synthetic", *TINY],
}


@pytest.fixture(params=COMMANDS)
def command(request, run_folder: Path, tmp_path: Path) -> list[str]:
    return COMMANDS[request.param](run_folder, tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_a_command_writes_few_lines_to_a_file_and_never_returns_the_carriage(
    command: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "error.txt"
    with path.open("w") as file, redirect_stderr(file):
        assert main(command) == 0
    text = path.read_bytes().decode()
    assert "\r" not in text
    # 20 steps, or 25 images and more, but only one line for each loop.
    assert len(text.splitlines()) <= 6, text


@contextmanager
def terminal() -> Iterator[bytearray]:
    """Standard error is a terminal inside; afterwards all of its output is there.

    A thread reads all the time: otherwise writing to a full terminal would block.
    """
    ours, its = os.openpty()
    received = bytearray()

    def read() -> None:
        with suppress(OSError):  # Linux reports so that the other end was closed
            while data := os.read(ours, 4096):
                received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(its, "w", encoding="utf-8") as screen, redirect_stderr(screen):
            yield received
    finally:
        reader.join()
        os.close(ours)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("command", ["train", "predict", "data check"], indirect=True)
def test_on_a_terminal_a_command_draws_a_bar(command: list[str]) -> None:
    with terminal() as received:
        assert main(command) == 0
    text = received.decode()
    assert "\r" in text
    assert re.search(r"\d+%\|.*\| \d+/\d+ \[", text), text


def test_no_other_module_draws_bars() -> None:
    """Another module would again write thousands of carriage returns to a file."""
    found = []
    for path in [*(ROOT / "cac_ext").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "tqdm" for name in names):
                found.append(path.relative_to(ROOT).as_posix())
    assert found == ["cac_ext/train/runtime/progress.py"]
