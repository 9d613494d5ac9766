"""Whole training steps with our loss and with a rival's differ in cost, not in what they learn."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")

import cac_ext
from benchmarks.__main__ import main
from benchmarks.results import Results
from benchmarks.training_step import NO_LOSS, TrainingStep, step_config

SMALL = ["augment.crop_size=33", "network.width=16", "method.projector_channels=16"]


def weights_after(loss: str, seed: int, negatives: int = 200, steps: int = 2) -> torch.Tensor:
    config = step_config("synthetic", SMALL)
    step = TrainingStep(config, loss, negatives, batch=2, device=torch.device("cpu"), seed=seed)
    for _ in range(steps):
        step.run()
    return torch.cat([parameter.detach().flatten() for parameter in step.model.parameters()])


def test_a_step_learns_the_same_with_the_naive_loss(seed: int) -> None:
    ours, naive = weights_after("ours", seed), weights_after("naive", seed)
    start, without = weights_after("ours", seed, steps=0), weights_after(NO_LOSS, seed)
    moved = (ours - start).norm()
    assert (ours - naive).norm() < 1e-4 * moved
    assert (ours - without).norm() > 1e-2 * moved  # or the loss would not matter at all


def test_a_step_meets_exactly_the_negatives_asked_for(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []
    right = cac_ext.directional_contrastive_loss

    def watched(*arguments, **options):
        met.append(len(arguments[6]))
        return right(*arguments, **options)

    monkeypatch.setattr(cac_ext, "directional_contrastive_loss", watched)
    for negatives in (10, 100, 3_000):
        weights_after("ours", seed, negatives, steps=1)
    assert met == [10, 100, 3_000]


def test_the_command_reports_rows_and_the_papers_own_figures_apart(tmp_path, capsys) -> None:
    output = tmp_path / "step.json"
    sizes = ["--negatives", "500", "19200", "--batch", "2", "--repeats", "1"]
    arguments = ["--losses", "ours", "--threads", "2", "--set", *SMALL, "--output", str(output)]
    assert main(["step", *sizes, *arguments]) == 0
    results = Results.load(output)
    assert [row.status for row in results.rows] == ["ok", "ok"]
    assert all(row.extra_memory > 0 and row.samples for row in results.rows)
    printed = capsys.readouterr().out
    assert "measured here, ours" in printed
    assert "the paper's own, on its GPUs" in printed
