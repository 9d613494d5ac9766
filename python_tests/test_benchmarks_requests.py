"""An impossible request ends with one sentence and exit code 2, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.loss import command as loss_command


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list:
    """The arguments of every start of `benchmarks loss`, which measures nothing here."""
    starts: list = []
    threads = torch.get_num_threads()
    monkeypatch.setattr(loss_command, "run", lambda arguments: starts.append(arguments) or 0)
    yield starts
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "foo"], "needs cpu, cuda, cuda:0, cuda:1, ..., but got 'foo'"),
        (["--device", "cuda:-1"], "but got 'cuda:-1'"),
        (["--threads", "-1"], "needs an integer of at least 1, but got '-1'"),
        (["--threads", "0"], "needs an integer of at least 1, but got '0'"),
        (["--repeats", "0"], "--repeats: needs an integer of at least 1, but got '0'"),
        (["--repeats", "2.5"], "but got '2.5'"),
        (["--time-budget", "0"], "--time-budget: needs a number above 0, but got '0'"),
        *((["--time-budget", text], f"but got {text!r}") for text in ("-5", "nan", "inf", "soon")),
        (
            ["--time-budget", "1e30"],
            "--time-budget: needs a number up to 1000000000, but got '1e30'",
        ),
        (["--memory-limit", "1e300"], "--memory-limit: needs a number up to"),
        (["--memory-limit", "-1"], "--memory-limit: needs a number above 0, but got '-1'"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(
    words: list[str], sentence: str, started: list, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["loss", *words])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not started


@pytest.mark.parametrize("command", ["step", "convergence"])
def test_the_other_commands_refuse_such_values_too(
    command: str, capsys: pytest.CaptureFixture
) -> None:
    option = {"step": "--repeats", "convergence": "--iterations"}[command]
    for words, sentence in (
        ([option, "0"], f"{option}: needs an integer of at least 1, but got '0'"),
        (["--time-budget", "inf"], "--time-budget: needs a number above 0, but got 'inf'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([command, *words])
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err


def _pretend_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> list:
    chosen: list = []

    def set_device(device: object) -> None:  # as torch: refuses a device without an index
        device = torch.device(device)
        if device.index is None:
            raise ValueError(f"expected a torch.device with a specified index, but got: {device}")
        chosen.append(device.index)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    return chosen


@pytest.mark.parametrize(("name", "expected"), [("cuda", []), ("cuda:1", [1]), ("cpu", [])])
def test_a_gpu_is_taken_with_or_without_its_number(
    name: str, expected: list[int], started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = _pretend_devices(monkeypatch, count=2)
    assert main(["loss", "--device", name]) == 0
    assert started[0].device == name
    assert chosen == expected


def test_a_gpu_that_is_not_there_is_refused(
    started: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for count, name, sentence in (
        (0, "cuda", "cuda: this torch finds no CUDA device"),
        (2, "cuda:2", "cuda:2: the last of the 2 CUDA devices is cuda:1"),
    ):
        _pretend_devices(monkeypatch, count)
        with pytest.raises(SystemExit) as ended:
            main(["loss", "--device", name])
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err
    assert not started


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(loss_command, "run", broken)
    with pytest.raises(ValueError, match="unpack"):
        main(["loss"])


def test_files_that_cannot_be_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    missing, other = tmp_path / "missing.json", tmp_path / "other.json"
    other.write_text(json.dumps({"schema": "else"}))
    assert main(["compare", str(missing), str(other)]) == 2
    assert (
        capsys.readouterr().err == f"error: {missing} cannot be read: No such file or directory\n"
    )
    assert main(["report", str(other)]) == 2
    assert "other.json is not a benchmark result of this version" in capsys.readouterr().err
    assert main(["readme", str(missing)]) == 2
    assert capsys.readouterr().err == f"error: {missing}: No such file or directory\n"


def test_an_unknown_configuration_is_refused_by_step(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("omegaconf")
    pytest.importorskip("torchvision")
    assert main(["step", "--config", "nonsense", "--output", str(tmp_path / "step.json")]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert not (tmp_path / "step.json").exists()
