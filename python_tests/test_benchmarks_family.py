"""``python -m benchmarks loss --family``: both sides compute the same, and a run gives its rows."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch

from benchmarks.loss import family
from benchmarks.loss.family import CASES, FamilyOptions, make_inputs, measure_family
from benchmarks.measure.results import Results


def tiny(case: family.FamilyCase) -> family.FamilyCase:
    keys_are_anchors = case.N == case.A
    return dataclasses.replace(case, A=40, N=40 if keys_are_anchors else 90, C=8, K=min(case.K, 5))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ours_equals_the_whole_matrix(seed: int, case: family.FamilyCase) -> None:
    case = tiny(case)
    inputs = make_inputs(case, seed, torch.device("cpu"), torch.float64)
    results = []
    for loss in (case.ours, case.eager):
        learning = family._learning(case, inputs)
        value = loss(learning)
        value.backward()
        grads = [learning.anchors.grad, learning.keys.grad, learning.positives.grad]
        results.append((value.detach(), *grads))
    for ours, eager in zip(*results, strict=True):
        if eager is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, eager, rtol=1e-9, atol=1e-11)


def test_a_run_has_a_row_for_each_contender(monkeypatch, capsys, seed: int) -> None:
    cases = [tiny(case) for case in CASES if case.name in ("supcon", "dense-cl")]
    monkeypatch.setattr(family, "CASES", cases)
    device = torch.device("cpu")
    results = Results.start("family", {}, device)
    options = FamilyOptions(
        device,
        seed=seed,
        repeats=2,
        deadline=time.monotonic() + 60,
        memory_limit=0,
        cases=(),
        compiled=False,
    )
    measure_family(results, options)
    assert len(results.rows) == 2 * 2 * 2 * 2  # cases, types, contenders, phases
    assert all(row.status == "ok" and len(row.samples) == 2 for row in results.rows)
    table = family.family_table(results)
    assert "supcon" in table
    assert "dense-cl" in table
    json.dumps([row.to_json() for row in results.rows])
