"""A whole training on a GPU equals that on a CPU, in every precision.

Each test runs on a CPU too, where there is no GPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from tiny_run import TINY_RUN
from watched_training import assert_same_training, holds_for_a_draw, watched_training

from cac_ext.train import loop
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.experiments import compare, engine
from cac_ext.train.figures.panels import save_panel
from cac_ext.train.loop import train
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runtime.distributed import process_group

#: What arithmetic of another precision or another order of sums may change: losses, and the
#: change of all parameters, in norm. "fp32" may be TF32 on a GPU.
TOLERANCE = {"fp32": 0.02, "bf16": 0.1, "fp16": 0.05}
UPDATE = {"fp32": 0.02, "bf16": 0.05, "fp16": 0.03}
#: Batch statistics of two images magnify rounding: one step, in which its half is still right. In
#: fp16 the first step may be one that the loss scale skips.
BATCH_NORM = ["network.name=own_network:build"]
UPDATE_BATCH_NORM = {"fp32": 0.2, "bf16": 0.6, "fp16": 1.0}
ONE_STEP = ["schedule.epochs=1", "schedule.iterations_per_epoch=1", "schedule.warmup_epochs=0"]
TINY = [
    *TINY_RUN,
    "network.dropout=0",
    "data.synthetic.validation=2",
    "method.confidence_threshold=0.1",
    "optimizer.learning_rate=0.001",
]

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def _train(device: str, folder: Path, *overrides: str, resume: bool = False) -> list[float]:
    """The losses of all steps."""
    config = load("synthetic", [*TINY, f"device={device}", *overrides])
    with process_group(device):
        result = train(config, folder, resume=resume, progress=False)
    assert next(result.network.parameters()).device.type == device
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("network", [[], BATCH_NORM], ids=["group_norm", "batch_norm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_and_layout_trains_as_a_cpu_in_fp32_does(
    network: list[str], precision: str, device: str, tmp_path: Path, seed: int
) -> None:
    if device == "cpu" and network and precision != "bf16":
        pytest.skip("slow on a CPU, where one precision is enough")

    def check(seed: int) -> None:
        settings = [*TINY, *network, f"seed={seed}", *(ONE_STEP if network else [])]
        expected = watched_training(tmp_path / f"cpu{seed}", settings)
        assert len(expected.losses) == (1 if network else 4)
        for layout in ("true",) if device == "cpu" else ("false", "true"):
            options = [f"run.precision={precision}", f"run.channels_last={layout}"]
            found = watched_training(tmp_path / f"{layout}{seed}", [*settings, *options], device)
            assert set(found.devices) == {device}
            assert set(found.channels_last) == {layout == "true"}
            update = (UPDATE_BATCH_NORM if network else UPDATE)[precision]
            assert_same_training(expected, found, losses=TOLERANCE[precision], update=update)

    holds_for_a_draw(seed, check)


def test_a_run_is_resumed_evaluated_and_predicts(
    device: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"seed={seed}", "network.dropout=0.5", "method.selected_num=9"]
    settings += ["run.negative_precision=true"]
    whole = _train(device, tmp_path / "whole", *settings)
    save_checkpoint = loop.save_checkpoint

    def save_and_die(*arguments) -> None:
        save_checkpoint(*arguments)
        raise KeyboardInterrupt

    folder = tmp_path / "broken"
    monkeypatch.setattr(loop, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        _train(device, folder, *settings)
    monkeypatch.setattr(loop, "save_checkpoint", save_checkpoint)
    torch.rand(3, device=device)  # the state of the process must not matter
    broken = _train(device, folder, *settings, resume=True)
    assert broken == pytest.approx(whole, rel=1e-3 if device == "cuda" else 0)  # dropout the same
    rounding = {"rtol": 1e-3, "atol": 1e-4} if device == "cuda" else {"rtol": 0, "atol": 0}
    states = [
        read_checkpoint(tmp_path / x / "checkpoint.pt")["modules"]["model"]
        for x in ("whole", "broken")
    ]
    torch.testing.assert_close(states[1], states[0], **rounding)

    assert main(["evaluate", str(folder), "--scales", "1,0.5", "--flip"]) == 0
    image = tmp_path / "image.png"
    save_panel(image, *_picture(folder), count=1)
    assert main(["predict", str(folder), str(image), "--output", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out" / "ids").glob("*.png"))


def _picture(folder: Path) -> tuple:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.runs.folder import load_run

    run = load_run(folder)
    return build_datasets(run.config.data), {"prediction": run.network}


def test_pseudo_labels_are_made_and_trained_with(device: str, tmp_path: Path, seed: int) -> None:
    settings = [*TINY, f"device={device}", f"seed={seed}", "image_classifier.epochs=1"]
    settings += ["image_classifier.weights=null", "image_classifier.scales=[1.0]"]
    auto = ["weak.pseudo_labels=auto", "self_training.pseudo_labels=auto"]
    folder = tmp_path / "run"
    assert main(["train", "synthetic", *settings, *auto, "--folder", str(folder)]) == 0
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("loss_weak", 0) > 0 for line in lines)


def test_a_later_run_of_a_comparison_does_not_count_the_memory_of_an_earlier(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = []

    def watched(*arguments, **options):
        occupied.append(torch.cuda.memory_allocated() if device == "cuda" else 0)
        return train(*arguments, **options)

    monkeypatch.setattr(engine, "train", watched)
    settings = [*TINY, f"device={device}", "network.width=128"]
    runs = compare.plan("synthetic", settings, ["sup_only", "cac"], [0])
    compare.compare(runs, tmp_path, progress=False)
    assert occupied[1] - occupied[0] < 2**20  # bytes; cuBLAS and the like may keep a little


def test_two_processes_with_half_the_batch_equal_one_with_the_whole(
    device: str, tmp_path: Path, seed: int
) -> None:
    """By NCCL on two GPUs, by gloo on a CPU."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    settings = [f"seed={seed}", "schedule.labelled_batch=4", "schedule.unlabelled_batch=4"]
    settings += ONE_STEP
    cases = [("bf16", BATCH_NORM)]
    if device == "cuda":  # for gloo see test_train_distributed.py
        cases.append(("fp32", []))
    for name, extra in cases:
        options = [*settings, *extra, f"run.precision={name}"]
        one = watched_training(tmp_path / f"{name}1", [*TINY, *options], device)
        both = processes.run_together(2, _train, device, tmp_path / f"{name}2", *options)
        assert both[0] == both[1]
        state = read_checkpoint(tmp_path / f"{name}2" / "checkpoint.pt")["modules"]["model"]
        two = replace(one, losses=both[0], after={x: state[x].cpu() for x in one.after})
        update = (UPDATE_BATCH_NORM if extra else UPDATE)[name]
        assert_same_training(one, two, losses=TOLERANCE[name], update=update)
