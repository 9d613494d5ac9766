"""Several gloo processes that share a batch equal one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from image_trees import draw_image, draw_mask, folder_overrides
from tiny_run import TINY_RUN, interrupted_before
from torch import nn
from watched_training import watched_training

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.evaluate import evaluate
from cac_ext.train.loop import train
from cac_ext.train.methods.consistency import Anchors
from cac_ext.train.methods.weak_to_strong import PseudoLabels
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runtime.distributed import (
    GlooBatchNorm,
    Processes,
    current,
    process_group,
    synchronize_batch_norm,
)

#: Relative tolerance: float32 sums in another order, over a few steps.
TOLERANCE = 2e-4

TINY = [
    *TINY_RUN,
    "network.dropout=0",  # its noise differs by process
    "data.synthetic.validation=5",
    "schedule.epochs=3",
    "schedule.labelled_batch=4",
    "schedule.unlabelled_batch=4",
    "method.unsupervised_weight=1",
    "method.confidence_threshold=0.1",
    "optimizer.learning_rate=0.01",
]


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def _train(overrides: list[str], folder: Path, resume: bool = False) -> float:
    with process_group("cpu"):
        config = load("synthetic", overrides)
        return train(config, folder, resume=resume, progress=False).miou


def _metrics(folder: Path, key: str) -> list[float]:
    return [line[key] for line in read_metrics(folder / "metrics.jsonl") if key in line]


@pytest.mark.parametrize("normalizer", ["overlap", "active"])
def test_two_groupwith_half_the_batch_equal_one_with_the_whole(
    normalizer: str, tmp_path: Path, seed: int
) -> None:
    # Rounding may carry a pixel over a threshold, so that it is an anchor in one of the two
    # trainings alone. Then the two losses differ, and another seed is drawn.
    for attempt in range(4):
        overrides = [*TINY, f"seed={seed + attempt}", f"method.normalizer={normalizer}"]
        folders = [tmp_path / f"one{attempt}", tmp_path / f"two{attempt}"]
        one = watched_training(folders[0], overrides)
        (miou,) = _metrics(folders[0], "miou")[-1:]
        mious = processes.run_together(2, _train, overrides, folders[1])
        assert mious[0] == mious[1]
        assert mious[0] == pytest.approx(miou, abs=0.02)  # single pixels may change their class
        shares = [_metrics(folder, "active_share") for folder in folders]
        assert shares[1] == pytest.approx(shares[0], abs=0.02)
        if shares[1] == pytest.approx(shares[0], abs=1e-4):
            break
    else:
        raise AssertionError("every draw has other anchors in two processes than in one")

    for key in ("loss_supervised", "loss_unsupervised", "negatives"):
        whole, shared = (_metrics(folder, key) for folder in folders)
        assert len(whole) == (6 if key == "loss_supervised" else 4)
        assert shared == pytest.approx(whole, rel=TOLERANCE), key
    # Relative to the change in training, because the weights hardly move in so few steps.
    state = read_checkpoint(folders[1] / "checkpoint.pt")["modules"]["model"]
    expected = one.update()
    update = replace(one, after={name: state[name] for name in one.after}).update()
    assert (update - expected).norm() <= 10 * TOLERANCE * expected.norm()


def _shares() -> tuple[float, float]:
    """Of 4 pixels that all count in one process, and of 12 that do not in the other."""
    with process_group("cpu") as group:
        first = group.rank == 0
        mask = torch.full((4 if first else 12,), first)
        anchors = Anchors(mask, torch.zeros_like(mask)).share(group)
        confidences = mask.float().view(1, 2, -1)
        labels = PseudoLabels(confidences.long(), confidences, torch.ones_like(confidences).bool())
        confident = labels.confident_share(0.5, group)
        return group.mean(anchors).item(), group.mean(confident).item()


def test_logged_shares_are_those_of_the_pixels_of_all_processes() -> None:
    assert processes.run_together(2, _shares) == [(0.25, 0.25)] * 2


def test_without_normalizing_over_ranks_the_loss_is_another(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}", "method.normalizer=active", "schedule.epochs=2"]
    losses = []
    for value in ("true", "false"):
        folder = tmp_path / value
        processes.run_together(2, _train, [*overrides, f"run.normalize_over_ranks={value}"], folder)
        losses.append(_metrics(folder, "loss_unsupervised"))
    assert len(losses[0]) == len(losses[1]) == 2
    assert all(0 < loss < 100 for loss in losses[0] + losses[1])
    assert losses[0] != pytest.approx(losses[1], rel=TOLERANCE)


def test_two_groupresume_bit_for_bit(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}", "network.dropout=0.5", "method.selected_num=9"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    processes.run_together(2, _train, overrides, whole)
    processes.run_together(2, _train_until, overrides, broken, 5)
    assert read_checkpoint(broken / "checkpoint.pt")["iteration"] == 4
    processes.run_together(2, _train, overrides, broken, True)
    states = [read_checkpoint(folder / "checkpoint.pt") for folder in (whole, broken)]
    assert len(states[0]["random"]) == 2
    assert not torch.equal(*(state["cpu"] for state in states[0]["random"]))
    for part in ("modules", "method", "random"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    assert _metrics(whole, "loss") == _metrics(broken, "loss")

    with pytest.warns(UserWarning, match=r"written by 2 process\(es\) and resumes with 1"):
        _train(overrides, broken, True)


def _train_until(overrides: list[str], folder: Path, iteration: int) -> None:
    with interrupted_before(iteration):
        _train(overrides, folder)


def test_negatives_of_all_grouparrive_in_the_order_of_ranks(seed: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        received = processes.run_together(3, _gather, seed, dtype)
        expected = [_negatives(seed, rank, dtype) for rank in range(3)]
        for features, labels, collectives in received:
            assert torch.equal(torch.tensor(features), torch.cat([f for f, _ in expected]).float())
            assert labels == torch.cat([x for _, x in expected]).tolist()
            assert collectives == 1


def _negatives(seed: int, rank: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + rank)
    count = (5, 0, 8)[rank]  # different counts, one of them none
    features = torch.randn(count, 6, generator=generator).to(dtype)
    return features, torch.randint(0, 300, (count,), generator=generator)


def _gather(seed: int, dtype: torch.dtype) -> tuple[list, list, int]:
    from torch import distributed

    calls = 0
    with process_group("cpu") as group, warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # nothing torch is about to remove
        name = "all_gather_single"  # from torch 2.14 on
        if not hasattr(distributed, name):
            name = "all_gather_into_tensor"
        gather = getattr(distributed, name)

        def counted(*arguments):
            nonlocal calls
            calls += 1
            return gather(*arguments)

        setattr(distributed, name, counted)
        features, labels = group.gather_negatives(*_negatives(seed, group.rank, dtype))
    assert not features.requires_grad
    return features.float().tolist(), labels.tolist(), calls


def test_every_image_is_evaluated_once(seed: int) -> None:
    alone = _evaluate(seed)
    assert processes.run_together(3, _evaluate, seed) == [alone] * 3  # 5 images: 2, 2 and 1


def _evaluate(seed: int) -> list:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.networks import build_network

    with process_group("cpu") as group:
        torch.manual_seed(seed)
        config = load("synthetic", TINY)
        splits = build_datasets(config.data)
        network = build_network(config.network, splits.num_classes).eval()
        return evaluate(
            network, splits.validation, splits.num_classes, 255, progress=False, processes=group
        ).confusion.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_batch_statistics_on_cpus_are_those_of_the_whole_batch(
    dtype: torch.dtype, seed: int
) -> None:
    one = _normalize(seed, dtype)
    rounding = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for rank, two in enumerate(processes.run_together(2, _normalize, seed, dtype)):
        assert two["dtype"] == str(dtype)
        for key in ("out", "gradient"):
            half = torch.tensor(one[key]).chunk(2)[rank]
            torch.testing.assert_close(torch.tensor(two[key]), half, rtol=rounding, atol=rounding)
        for key in ("running_mean", "running_var"):  # float32 in any case
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)


def _normalize(seed: int, dtype: torch.dtype) -> dict:
    with process_group("cpu") as group, warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # nothing torch is about to remove
        torch.manual_seed(seed)
        x = (3 + 2 * torch.randn(4, 3, 5, 2)).to(dtype).chunk(group.size)[group.rank]
        x.requires_grad_()
        weights = torch.randn(4, 3, 5, 2).chunk(group.size)[group.rank]
        norm = nn.BatchNorm2d(3) if group.size == 1 else GlooBatchNorm(3)
        out = norm(x)
        (out.float().square() * weights).sum().backward()
        return {
            "dtype": str(out.dtype),
            "out": out.tolist(),
            "gradient": x.grad.tolist(),
            "running_mean": norm.running_mean.tolist(),
            "running_var": norm.running_var.tolist(),
        }


class _NormAndActivation(nn.BatchNorm2d):
    """As timm's: a normalization with its activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def test_an_activation_inside_a_normalization_is_kept(seed: int) -> None:
    one = torch.tensor(_normalize_and_activate(seed))
    assert one.min() == 0 < one.max()
    for rank, two in enumerate(processes.run_together(2, _normalize_and_activate, seed)):
        torch.testing.assert_close(torch.tensor(two), one.chunk(2)[rank], rtol=1e-5, atol=1e-5)


def _normalize_and_activate(seed: int) -> list:
    with process_group("cpu") as group:
        torch.manual_seed(seed)
        x = torch.randn(4, 3, 5, 2).chunk(group.size)[group.rank]
        model = nn.Sequential(_NormAndActivation(3))
        synchronize_batch_norm(model, group, torch.device("cpu"))
        return model(x).tolist()


def test_a_batch_that_cannot_be_shared_is_an_error() -> None:
    with pytest.raises(ConfigError, match="which 2 processes cannot share"):
        Processes(0, 2).share(7, "schedule.labelled_batch")
    assert current() == Processes(0, 1)


def test_torchrun_starts_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "cac_ext.train", "train", "synthetic", *TINY, "schedule.epochs=1"]
    done = subprocess.run(
        [*command, "--folder", str(folder)], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 1  # rank 0 alone speaks
    assert read_checkpoint(folder / "checkpoint.pt")["iteration"] == 2
    assert (folder / "picture.png").stat().st_size > 0


def test_torchrun_evaluates_a_run_as_one_process_does(tmp_path: Path, seed: int) -> None:
    """Five images of different sizes: one process has three of them, the other two."""
    rng = np.random.default_rng(seed)
    counted = 0
    for part, sizes in (
        ("train", [(40, 40)] * 4),
        ("val", [(37, 50), (41, 33), (24, 24), (53, 61), (30, 45)]),
    ):
        lines = []
        for number, size in enumerate(sizes):
            image, mask = f"images/{part}{number}.png", f"masks/{part}{number}.png"
            draw_image(tmp_path / image, rng, size)
            ids = draw_mask(tmp_path / mask, rng, [0, 1, 2, 255], size)
            counted += int((ids != 255).sum()) if part == "val" else 0
            lines.append(f"{image} {mask}\n")
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    settings = [s for s in TINY if not s.startswith("data.")] + folder_overrides(tmp_path)
    settings += [f"seed={seed}", "data.labelled_ratio=1/2", "schedule.epochs=1"]
    run = str(tmp_path / "run")
    assert main(["train", "folder", *settings, "--folder", run]) == 0

    options = ["--scales", "1,0.5", "--flip", "--output"]
    assert main(["evaluate", run, *options, str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "cac_ext.train", "evaluate", run, *options, str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 1  # rank 0 alone speaks
    one, two = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")
    )
    assert sum(map(sum, one["confusion"])) == counted  # every pixel that counts, once
    assert two == one
    assert one["images"] == 5
