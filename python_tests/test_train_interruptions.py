"""Whatever ends a run, nothing saved is lost, and a resumed run equals an unbroken one."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import processes
import pytest
import torch
from run_folders import assert_same_run
from tiny_run import TINY_RUN
from torch.utils.tensorboard import SummaryWriter

from cac_ext.train import loop
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.errors import CheckpointError, ConfigError, NonFiniteError
from cac_ext.train.loop import train
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import RunLog
from cac_ext.train.runtime import whole_files as files
from cac_ext.train.runtime.signals import StopRequest, TrainingStopped

TINY = [
    *TINY_RUN,
    "schedule.epochs=6",
    "method.confidence_threshold=0.1",
]


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which ignores Ctrl-C there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _train(overrides: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    train(load("synthetic", overrides), folder, resume=True, progress=False)


def test_a_run_killed_at_random_moments_equals_an_unbroken_one(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = processes.start(_train, overrides, whole)
    _wait_for(whole / "config.yaml", unbroken)
    began = time.monotonic()
    unbroken.join()
    duration = time.monotonic() - began

    moments, kills = random.Random(seed), 0
    for _ in range(3):
        child = processes.start(_train, overrides, broken)
        _wait_for(broken / "config.yaml", child)
        child.join(timeout=moments.uniform(0, 0.8 * duration))
        kills += child.is_alive()
        child.kill()
        child.join()
    assert kills
    processes.start(_train, overrides, broken).join()
    assert_same_run(whole, broken)


def test_a_run_killed_while_it_saves_keeps_the_earlier_checkpoint(
    tmp_path: Path, seed: int
) -> None:
    overrides = [*TINY, f"seed={seed}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for count in (1, 2, 3):  # the first checkpoint, and ones over an earlier one
        child = processes.start(_train_and_die_in_save, overrides, broken, count)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        if count > 1:
            read_checkpoint(broken / "checkpoint.pt")
    processes.start(_train, overrides, broken).join()
    processes.start(_train, overrides, whole).join()
    assert_same_run(whole, broken)


def _train_and_die_in_save(overrides: list[str], folder: Path, count: int) -> None:
    replace, saved = os.replace, 0

    def die(source, target) -> None:
        nonlocal saved
        saved += Path(target).name == "checkpoint.pt"
        if saved == count:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    files.os.replace = die
    _train(overrides, folder)


def _wait_for(path: Path, child) -> None:
    while not path.exists() and child.is_alive():
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 0)]
)
def test_sigterm_and_ctrl_c_finish_the_step_save_and_say_so(
    number: signal.Signals,
    workers: int,
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd,
) -> None:
    overrides = [*TINY, f"seed={seed}", f"data.num_workers={workers}", "schedule.epochs=4"]
    at = random.Random(seed).choice((2, 4, 6))  # in the middle of an epoch once it is finished
    take_step = loop.take_step

    def terminate(*arguments):
        if arguments[1].iteration == at:
            os.kill(os.getpid(), number)
        return take_step(*arguments)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr(loop, "take_step", terminate)
    arguments = ["train", "synthetic", *overrides, "--folder", str(broken)]
    assert main(arguments) == 128 + number
    message = capfd.readouterr().err
    assert f"after iteration {at + 1} of 8" in message
    assert f"cac-ext resume {broken}" in message
    assert read_checkpoint(broken / "checkpoint.pt")["iteration"] == at + 1
    assert ("again to end at once" in message) == (number == signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    monkeypatch.setattr(loop, "take_step", take_step)
    if not workers:  # once is enough
        assert main(["resume", str(broken)]) == 0
        train(load("synthetic", overrides), whole, progress=False)
        assert_same_run(whole, broken)


def test_the_second_ctrl_c_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("did not end at once")

    _in_steps(monkeypatch, {2: interrupt})
    assert main(["train", "synthetic", *TINY, "--folder", str(tmp_path)]) == 130
    assert f"cac-ext resume {tmp_path}" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 2


def test_a_ctrl_c_that_torchrun_passes_on_is_no_second_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop_twice() -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            raise TrainingStopped("stopped")

    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(TrainingStopped) as error:
        stop_twice()
    assert error.value.signal == signal.SIGINT


def test_a_ctrl_c_on_which_nobody_acts_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """As in a background job of a script."""
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, earlier)


def _in_steps(monkeypatch: pytest.MonkeyPatch, hooks: dict[int, Callable]) -> None:
    """Calls ``hooks[iteration]`` with the arguments of `take_step` before it."""
    take_step = loop.take_step

    def hooked(*arguments):
        hooks.get(arguments[1].iteration, lambda *_: None)(*arguments)
        return take_step(*arguments)

    monkeypatch.setattr(loop, "take_step", hooked)


def test_sigterm_in_the_last_step_ends_the_run_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = loop.take_step

    def terminate(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return take_step(*arguments)

    config = load("synthetic", [*TINY, "schedule.epochs=1", "schedule.iterations_per_epoch=1"])
    monkeypatch.setattr(loop, "take_step", terminate)
    train(config, tmp_path, progress=False)
    with pytest.raises(TrainingStopped):
        train(load("synthetic", TINY), tmp_path / "longer", progress=False)


@contextmanager
def _full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: further writes fail, as on a full disk."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


def test_a_log_without_room_does_not_hide_what_ended_the_run(tmp_path: Path, monkeypatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(SummaryWriter, "close", no_room)
    with (
        pytest.raises(TrainingStopped, match="stopped"),
        RunLog(tmp_path, "train", 0, 1, progress=False),
    ):
        raise TrainingStopped("stopped")
    with (
        pytest.raises(OSError, match="no space left"),
        RunLog(tmp_path, "train", 0, 1, progress=False),
    ):
        pass


def test_a_full_disk_is_reported_and_the_checkpoint_kept(tmp_path: Path, monkeypatch) -> None:
    config = load("synthetic", [*TINY, "schedule.epochs=2"])
    save_checkpoint, count = loop.save_checkpoint, 0

    def save(*arguments):
        nonlocal count
        count += 1
        with _full_disk(20_000 if count == 2 else 10**9):
            save_checkpoint(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint") as error:
        train(config, tmp_path, progress=False)
    assert "the earlier checkpoint is kept" in str(error.value)
    assert f"cac-ext resume {tmp_path}" in str(error.value)
    assert not list(tmp_path.glob("*.partial"))
    assert read_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 2
    train(config, tmp_path, resume=True, progress=False)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 4


def test_a_full_disk_names_the_log_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with ExitStack() as full:
        _in_steps(monkeypatch, {3: lambda *_: full.enter_context(_full_disk(100))})
        assert main(["train", "synthetic", *TINY, "--folder", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "metrics.jsonl") in message
    assert f"To resume: cac-ext resume {tmp_path}" in message
    assert read_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 2


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write into the run folder"):
        train(load("synthetic", TINY), tmp_path / "file" / "run", progress=False)


def test_a_foreign_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for content in ({"state_dict": {}}, [1, 2], {"format": "cac_ext checkpoint 0"}):
        torch.save(content, path)
        before = path.read_bytes()
        with pytest.raises(CheckpointError, match="not a checkpoint written by this version"):
            train(load("synthetic", TINY), tmp_path, resume=True, progress=False)
        assert path.read_bytes() == before


def _spoil(monkeypatch: pytest.MonkeyPatch, where: str, at: range) -> None:
    """Makes the steps ``at`` non-finite, by their images or by their gradients alone."""
    take_step = loop.take_step

    def spoiled(*arguments):
        method, state, batches = arguments[:3]
        if state.iteration not in at:
            return take_step(*arguments)
        if where == "gradient":
            step = method.step
            with monkeypatch.context() as patch:
                patch.setattr(method, "step", lambda of: map(infinite, step(of)))
                return take_step(*arguments)
        images = batches[0]["labelled"].images
        if where == "view":
            images = batches[0]["crop_pairs"].view2.images
        images[0, 0, 0, 0] = torch.nan
        return take_step(*arguments)

    def infinite(phase):
        phase.total = phase.total + phase.total * torch.inf
        return phase

    monkeypatch.setattr(loop, "take_step", spoiled)


@pytest.mark.parametrize("where", ["labelled", "view", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run_and_keeps_its_batch(
    where: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, where, range(5, 6))
    with pytest.raises(NonFiniteError, match="iteration 5 is not finite") as error:
        train(load("synthetic", [*TINY, f"seed={seed}"]), tmp_path, progress=False)
    path = tmp_path / "nonfinite-5-rank0.pt"
    assert str(path) in str(error.value)
    kept = torch.load(path, weights_only=True)
    assert kept["batches"]["labelled"]["images"].shape == (2, 3, 33, 33)
    assert kept["batches"]["crop_pairs"]["view1"]["images"].shape == (2, 3, 33, 33)
    assert kept["iteration"] == 5
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert state["iteration"] == 4
    assert all(tensor.isfinite().all() for tensor in state["modules"]["model"].values())


def test_a_step_that_is_not_finite_is_reported_on_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, "labelled", range(1))
    with ExitStack() as full:
        _in_steps(monkeypatch, {0: lambda *_: full.enter_context(_full_disk(5000))})
        with pytest.raises(NonFiniteError, match=r"iteration 0 is not finite.*could not be saved"):
            train(load("synthetic", TINY), tmp_path, progress=False)
    assert not list(tmp_path.glob("nonfinite*"))


def test_fp16_gradients_that_stay_infinite_stop_the_run_and_single_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = ["schedule.epochs=12", "schedule.evaluate_every=12"]
    config = load("synthetic", [*TINY, "run.precision=fp16", *once])
    _spoil(monkeypatch, "gradient", range(3, 9))
    train(config, tmp_path / "single", progress=False)
    assert read_checkpoint(tmp_path / "single" / "checkpoint.pt")["iteration"] == 24
    _spoil(monkeypatch, "gradient", range(24))
    with pytest.raises(NonFiniteError, match=r"not finite.*bf16"):
        train(config, tmp_path / "lasting", progress=False)


@pytest.mark.parametrize("where", ["labelled", "view", "gradient"])
def test_a_step_that_is_not_finite_can_be_skipped(
    where: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, where, range(5, 7))
    config = load("synthetic", [*TINY, f"seed={seed}", "run.nonfinite=skip"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(config, tmp_path, progress=False)
    skipped = [str(w.message) for w in caught if "not finite: skipped" in str(w.message)]
    assert len(skipped) == 2
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert state["iteration"] == 12
    assert all(tensor.isfinite().all() for tensor in state["modules"]["model"].values())
    assert all(tensor.isfinite().all() for tensor in state["method"]["bank"]["features"])


def test_skipping_ends_when_nothing_else_happens(tmp_path: Path, monkeypatch) -> None:
    _spoil(monkeypatch, "labelled", range(100))
    config = load("synthetic", [*TINY, "run.nonfinite=skip", "schedule.epochs=20"])
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(NonFiniteError, match="as in the 20 steps before"),
    ):
        train(config, tmp_path, progress=False)
