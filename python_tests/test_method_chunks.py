"""Negatives that come in chunks give the loss and the gradient of all of them together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from tiny_run import TINY_RUN, interrupted_before

from cac_ext.train.config import MethodConfig, load
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.methods.consistency import (
    Overlap,
    consistency_loss,
    consistency_loss_over_chunks,
)
from cac_ext.train.methods.directional_contrast import DirectionalContrast
from cac_ext.train.methods.memory_bank import join_banks, share_of_bank
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runtime.distributed import Processes, process_group

CLASSES = 4


def unit(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=1).to(dtype)


def draw_overlap(anchors: int, channels: int, dtype: torch.dtype) -> Overlap:
    return Overlap(
        unit(anchors, channels, dtype=dtype).requires_grad_(),
        torch.rand(anchors, dtype=torch.float64).to(dtype),
        torch.randint(CLASSES, (anchors,)),
    )


SETTINGS = [
    {},
    {"directional": False},
    {"negative_sampling": False},
    {"positive_filtering": False, "normalizer": "active"},
    {"temperature": 0.02},
    {"loss": "l2"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str
)
def test_any_chunks_give_the_loss_and_gradient_of_the_whole(settings, dtype, tolerance, seed):
    torch.manual_seed(seed)
    config = MethodConfig(**{"confidence_threshold": 0.3, **settings})
    if config.normalizer == "active":
        tolerance = max(tolerance, 1e-6)  # one over the active anchors is float32
    for anchors, negatives, cuts in [
        (37, 101, [1, 40, 41, 100]),
        (5, 3, [0, 0, 1, 3]),  # empty chunks
        (8, 0, []),  # no negatives at all
        (0, 9, [4]),
    ]:
        channels = int(torch.randint(1, 20, ()))
        views = draw_overlap(anchors, channels, dtype), draw_overlap(anchors, channels, dtype)
        weights = torch.rand(anchors).to(dtype)
        bank = unit(negatives, channels, dtype=dtype), torch.randint(CLASSES, (negatives,))
        results = []
        for loss, given in (
            (consistency_loss, bank),
            (
                consistency_loss_over_chunks,
                [list(zip(*(part.tensor_split(cuts) for part in bank), strict=True))],
            ),
        ):
            value, active = loss(config, *views, weights, *given)
            gradients = torch.autograd.grad(
                3 * value, [view.projections for view in views], materialize_grads=True
            )
            results.append((value, *gradients, *active))
        for whole, chunked in zip(*results, strict=True):
            torch.testing.assert_close(chunked, whole, rtol=tolerance, atol=tolerance)


def test_losses_far_above_what_exp_can_hold_merge(seed):
    """At a temperature of 0.001 a loss reaches 2000."""
    torch.manual_seed(seed)
    views = [draw_overlap(6, 2, torch.float32) for _ in range(2)]
    config = MethodConfig(temperature=0.001, negative_sampling=False, confidence_threshold=0)
    bank = unit(50, 2, dtype=torch.float32), torch.zeros(50, dtype=torch.long)
    chunks = list(zip(*(part.chunk(7) for part in bank), strict=True))
    whole, _ = consistency_loss(config, *views, torch.ones(6), *bank)
    chunked, _ = consistency_loss_over_chunks(config, *views, torch.ones(6), chunks)
    assert whole > 100
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"directional": False, "normalizer": "active"}], ids=str)
def test_processes_that_gather_chunks_have_the_loss_and_gradient_of_all(count, settings, seed):
    for most, whole, chunked, largest in processes.run_together(count, _both_ways, seed, settings):
        assert largest <= most
        torch.testing.assert_close(
            torch.tensor(chunked), torch.tensor(whole), rtol=2e-5, atol=2e-5, equal_nan=True
        )


def _both_ways(seed: int, settings: dict) -> tuple[int, list[float], list[float], int]:
    """The budget; loss and gradients by one gather and by chunks; the largest chunk."""
    config = MethodConfig(**{"confidence_threshold": 0.3, **settings})
    with process_group("cpu") as group:
        torch.manual_seed(seed + group.rank)
        views = [draw_overlap(20 + group.rank, 8, torch.float32) for _ in range(2)]
        weights = torch.rand(20 + group.rank)
        own = (0, 31, 17)[group.rank]  # different counts, one of them none
        rows = unit(own, 8, dtype=torch.float32), torch.randint(CLASSES, (own,))
        most, sizes = 3 * group.size + 1, []

        def chunks():
            for features, labels in group.gather_in_chunks(*rows, most):
                sizes.append(len(features))
                yield features, labels

        results = []
        for loss, given in (
            (consistency_loss, group.gather_negatives(*rows)),
            (consistency_loss_over_chunks, [chunks()]),
        ):
            value, _ = loss(config, *views, weights, *given, group)
            gradients = torch.autograd.grad(value, [view.projections for view in views])
            results.append(torch.cat([value[None], *(x.flatten() for x in gradients)]).tolist())
    assert sum(sizes) == sum((0, 31, 17)[: group.size])
    return most, *results, max(sizes)


TINY = [
    *TINY_RUN,
    "network.dropout=0",
    "schedule.epochs=3",
    "schedule.labelled_batch=4",
    "schedule.unlabelled_batch=4",
    "method.unsupervised_weight=1",
    "method.confidence_threshold=0.1",
]


def _train(overrides: list[str], folder: Path, resume: bool = False) -> None:
    with process_group("cpu"):
        train(load("synthetic", overrides), folder, resume=resume, progress=False)


def _train_until(overrides: list[str], folder: Path, iteration: int) -> None:
    with interrupted_before(iteration):
        _train(overrides, folder)


def _metrics(folder: Path, key: str) -> list[float | None]:
    return [line[key] for line in read_metrics(folder / "metrics.jsonl") if key in line]


@pytest.mark.usefixtures("one_thread", "without_pictures")
def test_a_training_that_gathers_chunks_meets_the_same_negatives_and_resumes_bit_for_bit(
    tmp_path: Path, seed: int
) -> None:
    overrides = [*TINY, f"seed={seed}"]
    chunked = [*overrides, "run.max_gathered_negatives=50"]
    reference, whole, broken = (tmp_path / name for name in ("reference", "whole", "broken"))
    processes.run_together(2, _train, overrides, reference)
    processes.run_together(2, _train, chunked, whole)
    for key in ("negatives", "negative_precision", "loss_unsupervised"):
        expected, found = _metrics(reference, key), _metrics(whole, key)
        assert len(found) == len(expected) == 4
        # Of the same weights; later, rounding may carry a pixel over a threshold.
        if expected[0] is None:  # no anchor in the step
            assert found[0] is None
        else:
            assert found[0] == pytest.approx(expected[0], rel=2e-5)
    assert _metrics(whole, "negatives") == _metrics(reference, "negatives")

    processes.run_together(2, _train_until, chunked, broken, 5)
    assert read_checkpoint(broken / "checkpoint.pt")["iteration"] == 4
    processes.run_together(2, _train, chunked, broken, True)
    states = [read_checkpoint(folder / "checkpoint.pt") for folder in (whole, broken)]
    for part in ("modules", "method", "random"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    assert _metrics(whole, "loss") == _metrics(broken, "loss")
    bank = states[0]["method"]["bank"]
    assert sum(map(len, bank["labels"])) == _metrics(whole, "negatives")[-1]


def test_a_joined_bank_falls_into_the_parts_it_was_made_of(seed: int) -> None:
    torch.manual_seed(seed)
    counts = [torch.ones(3, 3)] * 2
    states = [
        {
            "features": [torch.randn(rows, 4) for rows in sizes],
            "labels": [torch.randint(3, (rows,)) for rows in sizes],
            "counts": counts,
        }
        for sizes in ((5, 0), (2, 7), (3, 3))
    ]
    joined = join_banks(states)
    for rank, state in enumerate(states):
        torch.testing.assert_close(share_of_bank(joined, rank, 3), state, rtol=0, atol=0)
    halves = [share_of_bank(joined, rank, 2) for rank in range(2)]
    for step in range(2):
        for part in ("features", "labels"):
            together = torch.cat([half[part][step] for half in halves])
            assert torch.equal(together, joined[part][step])


def test_a_budget_below_one_row_a_process_is_refused() -> None:
    config = load("synthetic", [*TINY, "run.max_gathered_negatives=3"])
    context = SimpleNamespace(config=config, processes=Processes(0, 4))
    with pytest.raises(ConfigError, match="set it to 4 or more"):
        DirectionalContrast(context)
