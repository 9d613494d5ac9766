"""Mixed precision, memory layout and compilation change a training by rounding alone."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import TINY_RUN
from watched_training import assert_same_training, holds_for_a_draw, watched_training

from cac_ext.train import loop
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.networks.projector import Projector
from cac_ext.train.runs.checkpoint import read_checkpoint

TINY = [
    *TINY_RUN,
    "network.dropout=0",
    "data.synthetic.labelled=4",
    "data.synthetic.unlabelled=8",
    "data.synthetic.validation=2",
    "method.confidence_threshold=0.1",
    "optimizer.learning_rate=0.001",
]


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


@pytest.mark.parametrize(
    ("option", "losses", "update"),
    [
        ("run.precision=bf16", 0.02, 0.03),
        ("run.precision=fp16", 0.005, 0.01),
        ("run.channels_last=true", 1e-5, 1e-4),
        pytest.param("run.compile=true", 1e-4, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_an_option_is_applied_and_changes_the_training_by_rounding_only(
    option: str, losses: float, update: float, tmp_path: Path, seed: int
) -> None:
    def check(seed: int) -> None:
        plain = watched_training(tmp_path / f"plain{seed}", [*TINY, f"seed={seed}"])
        other = watched_training(tmp_path / f"other{seed}", [*TINY, f"seed={seed}", option])
        assert_same_training(plain, other, losses=losses, update=update)
        if "precision" in option:
            assert other.losses != plain.losses
        assert plain.channels_last == plain.compiled == [False] * 4
        assert other.channels_last == ["channels_last" in option] * 4
        assert other.compiled == ["compile" in option] * 4
        state = read_checkpoint(tmp_path / f"other{seed}" / "checkpoint.pt")["modules"]["model"]
        floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
        assert all(tensor.dtype == torch.float32 for tensor in floats)

    holds_for_a_draw(seed, check)


def test_the_loss_scale_of_fp16_is_kept(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = []
    save_checkpoint = loop.save_checkpoint

    def save(*arguments):
        (scaler,) = arguments[1].scalers.values()
        if not scalers:
            scaler.update(new_scale=128.0)
        scalers.append(scaler.get_scale())
        save_checkpoint(*arguments)
        if len(scalers) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save)
    config = load("synthetic", [*TINY, f"seed={seed}", "run.precision=fp16"])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, progress=False)
    train(config, tmp_path, resume=True, progress=False)
    assert scalers == [128.0, 128.0]


def test_projections_have_length_1_in_float32_under_autocast(seed: int) -> None:
    torch.manual_seed(seed)
    projector = Projector(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        projections = projector(torch.randn(2, 8, 5, 5))
    assert projections.dtype == torch.float32
    torch.testing.assert_close(projections.norm(dim=1), torch.ones(2, 5, 5))


def _peak_of_process() -> float:
    """MiB; the system counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def test_speed_and_memory_are_logged(tmp_path: Path) -> None:
    before, start = _peak_of_process(), time.perf_counter()
    train(load("synthetic", TINY), tmp_path, progress=False)
    after, seconds = _peak_of_process(), time.perf_counter() - start
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if line["split"] == "train"]
    assert len(logged) > 1
    for line in logged:
        # Two images at least, and a step cannot have taken longer than all of the training.
        assert line["images_per_second"] > 2 / seconds
        assert before <= line["memory_mib"] <= after


def test_a_precision_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run\.precision.*fp8"):
        load("synthetic", ["run.precision=fp8"])
