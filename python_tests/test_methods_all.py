"""Promises of every shipped method: it trains, resumes bit for bit, runs in several processes."""

from __future__ import annotations

import os
from pathlib import Path

import processes
import pytest
import torch
from run_folders import assert_same_run
from tiny_run import TINY_RUN

from cac_ext.train import loop
from cac_ext.train.config import load
from cac_ext.train.loop import train
from cac_ext.train.methods import METHODS, Method
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runtime.distributed import process_group

#: Settings with which each part of a method takes part in a run of a few steps.
LIVELY = {
    "cac": ["method.confidence_threshold=0.1"],
    "fixmatch": ["fixmatch.confidence_threshold=0.1"],
    "unimatch": ["unimatch.confidence_threshold=0.1"],
    "s4gan": ["s4gan.score_threshold=0.1"],
    "gct": ["gct.flaw_threshold=0.2"],
}

pytestmark = [
    pytest.mark.usefixtures("one_thread", "without_pictures"),
    pytest.mark.parametrize("method", METHODS),
]


def settings(method: str, *more: str) -> list[str]:
    lively = LIVELY.get(method, [])
    return [*TINY_RUN, "schedule.epochs=3", f"method.name={method}", *lively, *more]


def _train(overrides: list[str], folder: Path, dies_at: int | None = None) -> None:
    take_step = loop.take_step

    def dying(method: Method, state, *rest):
        if state.iteration == dies_at:
            os.kill(os.getpid(), 9)
        return take_step(method, state, *rest)

    loop.take_step = dying
    try:
        with process_group("cpu"):
            train(load("synthetic", overrides), folder, resume=True, progress=False)
    finally:
        loop.take_step = take_step


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    modules = read_checkpoint(folder / "checkpoint.pt")["modules"]
    return {f"{name}.{key}": x for name, state in modules.items() for key, x in state.items()}


def test_it_resumes_bit_for_bit_after_sigkill(method: str, tmp_path: Path, seed: int) -> None:
    overrides = settings(method, f"seed={seed}", "network.dropout=0.5")
    child = processes.start(_train, overrides, tmp_path / "broken", 5)
    child.join()
    assert child.exitcode == -9
    _train(overrides, tmp_path / "broken")
    _train(overrides, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_it_trains_in_two_processes(method: str, tmp_path: Path, seed: int) -> None:
    """Every process ends with the same weights; they are finite and have moved."""
    overrides = settings(method, f"seed={seed}")
    processes.run_together(2, _train, overrides, tmp_path / "two")
    _train([*overrides, "schedule.epochs=1"], tmp_path / "short")
    trained, early = _weights(tmp_path / "two"), _weights(tmp_path / "short")
    assert all(x.isfinite().all() for x in trained.values())
    moved = {name for name, x in trained.items() if not torch.equal(x, early[name])}
    parameters = {name for name in trained if name.endswith((".weight", ".bias"))}
    assert parameters
    assert parameters <= moved, f"not trained: {sorted(parameters - moved)}"


@pytest.mark.parametrize(
    "network",
    [
        ("network.name=deeplabv3plus", "network.weights=null", "run.precision=bf16"),
        ("run.precision=bf16", "run.channels_last=true"),
    ],
    ids=["deeplabv3plus", "channels_last"],
)
def test_it_trains_any_network_in_mixed_precision(
    method: str, network: tuple[str, ...], tmp_path: Path, seed: int
) -> None:
    short = ["schedule.epochs=2", "schedule.iterations_per_epoch=1", "schedule.evaluate_every=2"]
    _train(settings(method, f"seed={seed}", *short, *network), tmp_path)
    steps = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "train"]
    assert len(steps) == 2
    for step in steps:
        assert all(torch.tensor(value).isfinite() for key, value in step.items() if "loss" in key)
