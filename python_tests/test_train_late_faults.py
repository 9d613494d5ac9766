"""A fault in the middle of a run (a file, a worker, a disk) loses no finished work."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from run_folders import assert_same_run
from tiny_run import TINY_RUN

from cac_ext.train import loop
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data.stream import Stream
from cac_ext.train.errors import DataError
from cac_ext.train.evaluate import evaluate
from cac_ext.train.loop import train
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runtime.distributed import process_group

TINY = [*TINY_RUN, "schedule.epochs=3", "schedule.iterations_per_epoch=4", "network.dropout=0.5"]

pytestmark = pytest.mark.usefixtures("one_thread")


def break_stream(monkeypatch: pytest.MonkeyPatch, name: str, position: int) -> None:
    """Samples of a stream cannot be read from ``position`` on."""
    original = Stream.__getitem__

    def broken(self: Stream, at: int):
        if self.name == name and at >= position:
            raise DataError(f"cannot read the image broken.jpg of {name}")
        return original(self, at)

    monkeypatch.setattr(Stream, "__getitem__", broken)


@pytest.mark.parametrize(
    ("stream", "workers"), [("labelled", 0), ("unlabelled", 0), ("labelled", 2)]
)
def test_a_file_that_breaks_in_the_middle_costs_no_finished_step(
    stream: str, workers: int, tmp_path: Path, seed: int, monkeypatch, capsys
) -> None:
    overrides = [*TINY, f"seed={seed}", f"data.num_workers={workers}"]
    folder = tmp_path / "broken"
    with monkeypatch.context() as patch:
        break_stream(patch, stream, 13)  # in iteration 6, of two images each
        assert main(["train", "synthetic", *overrides, "--folder", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "broken.jpg" in message
    assert f"To resume: cac-ext resume {folder}" in message
    assert "Traceback" not in message
    assert read_checkpoint(folder / "checkpoint.pt")["iteration"] == 6
    if not workers:
        assert main(["resume", str(folder)]) == 0
        train(load("synthetic", overrides), tmp_path / "whole", progress=False)
        assert_same_run(tmp_path / "whole", folder)


def test_an_evaluation_that_fails_is_made_up_for_after_the_resume(
    tmp_path: Path, seed: int, monkeypatch
) -> None:
    overrides = [*TINY, f"seed={seed}", "schedule.evaluate_every=1"]
    config = load("synthetic", overrides)
    for fails_at in (2, 3):  # the second evaluation, and the last one
        calls = 0

        def failing(*arguments, fails_at=fails_at, **keywords):
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise DataError("cannot read the mask broken.png")
            return evaluate(*arguments, **keywords)

        folder = tmp_path / str(fails_at)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", failing)
            with pytest.raises(DataError, match=r"broken\.png"):
                train(config, folder, progress=False)
        assert read_checkpoint(folder / "checkpoint.pt")["iteration"] == 4 * fails_at
        result = train(config, folder, resume=True, progress=False)
        assert result.miou == pytest.approx(result.miou, nan_ok=False)
    train(config, tmp_path / "whole", progress=False)
    for fails_at in (2, 3):
        assert_same_run(tmp_path / "whole", tmp_path / str(fails_at))


def test_a_step_that_breaks_saves_no_half_of_it(tmp_path: Path, monkeypatch) -> None:
    take_step = loop.take_step

    def broken(method, state, *rest):
        if state.iteration == 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take_step(method, state, *rest)

    monkeypatch.setattr(loop, "take_step", broken)
    with pytest.raises(torch.OutOfMemoryError):
        train(load("synthetic", TINY), tmp_path, progress=False)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 4  # the epoch's


def _train_with_a_broken_rank(overrides: list[str], folder: Path, broken: bool) -> str:
    with process_group("cpu") as group, pytest.MonkeyPatch.context() as patch:
        if broken and group.rank == 1:
            break_stream(patch, "labelled", 12)
        try:
            train(load("synthetic", overrides), folder, resume=not broken, progress=False)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "finished"


def test_one_process_that_fails_ends_all_and_all_have_saved(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}"]
    ends = processes.run_together(2, _train_with_a_broken_rank, overrides, tmp_path / "run", True)
    assert ends[0] == "ProcessError: another process has failed; its own message says why"
    assert ends[1].startswith("DataError: cannot read the image broken.jpg")
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["iteration"] == 6
    again = processes.run_together(2, _train_with_a_broken_rank, overrides, tmp_path / "run", False)
    assert again == ["finished", "finished"]


def test_nothing_to_evaluate_on_is_said() -> None:
    network = torch.nn.Linear(1, 1)
    with pytest.raises(DataError, match="no images to evaluate on"):
        evaluate(network, [], 3, 255, progress=False)
