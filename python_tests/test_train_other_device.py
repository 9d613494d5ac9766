"""A run resumes on another device, and with other settings that change rounding alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tiny_run import TINY_RUN

from cac_ext.train.cli.main import main
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run of two epochs that stopped after the first."""
    run = tmp_path / "run"
    command = ["train", "synthetic", *TINY_RUN, "method.unsupervised_weight=0"]
    assert main([*command, "schedule.epochs=1", "--folder", str(run)]) == 0
    change(run, lambda state: state["config"]["schedule"].update(epochs=2))
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 1\n  iter", "epochs: 2\n  iter"))
    return run


def change(run: Path, edit) -> None:
    state = read_checkpoint(run / "checkpoint.pt")
    edit(state)
    torch.save(state, run / "checkpoint.pt")


def rounding_warnings(arguments: list[str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(arguments) == 0
    return [str(w.message) for w in caught if "differ by rounding" in str(w.message)]


def test_a_run_of_a_gpu_resumes_on_a_cpu_and_says_what_differs(interrupted: Path) -> None:
    def of_gpu(state: dict) -> None:
        assert state["device"] == "cpu"
        state["device"] = state["config"]["device"] = "cuda"

    change(interrupted, of_gpu)
    path = interrupted / "config.yaml"
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    (text,) = rounding_warnings(["resume", str(interrupted), "device=cpu"])
    assert "the device is cuda there and cpu here" in text
    assert read_metrics(interrupted / "metrics.jsonl")[-1]["iteration"] == 4
    assert "device: cpu" in path.read_text()  # the next resume gives no warning
    assert rounding_warnings(["resume", str(interrupted)]) == []


def test_the_same_kind_of_device_by_another_name_is_not_warned_of(interrupted: Path) -> None:
    assert rounding_warnings(["resume", str(interrupted), "device=auto"]) == [] or (
        torch.cuda.is_available()
    )


@pytest.mark.parametrize(
    ("setting", "warned"),
    [("run.channels_last=true", 1), ("schedule.log_every=7", 0), ("network.weights=null", 0)],
)
def test_settings_that_change_rounding_or_nothing_are_free(
    setting: str, warned: int, interrupted: Path
) -> None:
    texts = rounding_warnings(["resume", str(interrupted), setting])
    assert len(texts) == warned
    assert all(setting.partition("=")[0] in text for text in texts)


def test_what_changes_the_result_is_still_refused(
    interrupted: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["resume", str(interrupted), "device=cpu", "run.precision=bf16"]) == 2
    message = capsys.readouterr().err
    assert "run.precision is fp32 there and bf16 here" in message
    assert "device" in message.partition("Only ")[2]
