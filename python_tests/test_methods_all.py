"""Promises of every shipped method: it trains, resumes bit for bit, runs in several processes."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from dying_run import assert_resumes_bit_for_bit, train_until
from tiny_run import TINY_RUN

from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods import METHODS, check_method
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics

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


def test_image_labels_are_used_or_refused(method: str) -> None:
    config = load("synthetic", [f"method.name={method}", "weak.pseudo_labels=masks"])
    if method in ("cac", "cct"):
        check_method(config)
        return
    reason = f"weak.pseudo_labels: {method} does not learn from image-level labels; leave it out"
    with pytest.raises(ConfigError, match=reason):
        check_method(config)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    modules = read_checkpoint(folder / "checkpoint.pt")["modules"]
    return {f"{name}.{key}": x for name, state in modules.items() for key, x in state.items()}


def test_it_resumes_bit_for_bit_after_sigkill(method: str, tmp_path: Path, seed: int) -> None:
    overrides = settings(method, f"seed={seed}", "network.dropout=0.5")
    assert_resumes_bit_for_bit(overrides, tmp_path)


def test_it_trains_in_two_processes(method: str, tmp_path: Path, seed: int) -> None:
    """Every process ends with the same weights; they are finite and have moved."""
    overrides = settings(method, f"seed={seed}")
    processes.run_together(2, train_until, overrides, tmp_path / "two")
    train_until([*overrides, "schedule.epochs=1"], tmp_path / "short")
    trained, early = _weights(tmp_path / "two"), _weights(tmp_path / "short")
    assert all(x.isfinite().all() for x in trained.values())
    moved = {name for name, x in trained.items() if not torch.equal(x, early[name])}
    parameters = {name for name in trained if name.endswith((".weight", ".bias"))}
    assert parameters
    assert parameters <= moved, f"not trained: {sorted(parameters - moved)}"


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(
            ("network.name=deeplabv3plus", "network.weights=null", "run.precision=bf16"),
            marks=pytest.mark.slow,
        ),
        ("run.precision=bf16", "run.channels_last=true"),
    ],
    ids=["deeplabv3plus", "channels_last"],
)
def test_it_trains_any_network_in_mixed_precision(
    method: str, network: tuple[str, ...], tmp_path: Path, seed: int
) -> None:
    short = ["schedule.epochs=2", "schedule.iterations_per_epoch=1", "schedule.evaluate_every=2"]
    train_until(settings(method, f"seed={seed}", *short, *network), tmp_path)
    steps = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "train"]
    assert len(steps) == 2
    for step in steps:
        assert all(torch.tensor(value).isfinite() for key, value in step.items() if "loss" in key)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_trains_on_a_gpu(method: str, precision: str, tmp_path: Path, seed: int) -> None:
    # The last of equal keys counts: TINY_RUN asks for the CPU.
    overrides = settings(method, f"seed={seed}", "device=cuda", f"run.precision={precision}")
    train_until(overrides, tmp_path)
    steps = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "train"]
    assert len(steps) == 6
    if precision != "fp16":  # whose first steps may be skipped until the loss scale fits
        assert all(torch.tensor(step["loss"]).isfinite() for step in steps)


def test_its_loss_on_true_masks_is_the_configured_one_in_parts_too(
    method: str, tmp_path: Path
) -> None:
    """Where all classes have the weight 0, nothing is learned from true masks."""
    short = ["schedule.epochs=1", "schedule.iterations_per_epoch=1", "schedule.warmup_epochs=0"]
    parts = ["schedule.accumulation=2", "schedule.labelled_batch=4", "schedule.unlabelled_batch=4"]
    weightless = "supervised.class_weights=[0,0,0,0,0,0,0]"
    train_until(settings(method, *short, *parts, weightless), tmp_path)
    (logged,) = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "train"]
    supervised = {name: x for name, x in logged.items() if name.endswith("_supervised")}
    assert {"loss_supervised"} <= supervised.keys()
    assert set(supervised.values()) == {0}
