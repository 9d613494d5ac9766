"""The search for the largest step that fits finds it, or says why not."""

from __future__ import annotations

import math
import time
from argparse import Namespace

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")

from benchmarks.implementations.contenders import NO_LOSS
from benchmarks.measure.memory import MemoryUse
from benchmarks.measure.results import Results
from benchmarks.step.run import StepRun
from benchmarks.step.search import END, MEMORY, SEARCH_SHARE, TIME, describe, find_largest
from benchmarks.step.table import step_table


class Machine:
    """A made-up machine, on which every size up to ``most`` fits."""

    def __init__(self, most: int, broken: dict[int, str] | None = None) -> None:
        self.most, self.broken, self.met = most, broken or {}, []

    def __call__(self, size: int) -> MemoryUse:
        self.met.append(size)
        if size in self.broken:
            return MemoryUse(self.broken[size], detail="as planted")
        return MemoryUse("ok" if size <= self.most else "out_of_memory", 1)


def search(machine: Machine, first: int, last: int):
    return find_largest(machine, first, last, math.inf)


def test_memory_sets_the_limit_to_a_tenth(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for most in torch.randint(6_400, 5_000_000, (50,), generator=generator).tolist():
        machine = Machine(most)
        found = search(machine, 6_400, 6_553_600)
        assert found.stopped_by == MEMORY
        assert found.largest <= most < found.too_large <= 1.1 * found.largest
        assert len(machine.met) <= 16
    for most in range(1, 20):  # up to ten images, a tenth is less than one
        found = search(Machine(most), 1, 1_024)
        assert found.largest <= most < found.too_large <= found.largest + max(1, most // 10)


def test_the_end_of_a_search_is_reported() -> None:
    everything = search(Machine(10**9), 6_400, 51_200)
    assert (everything.largest, everything.stopped_by) == (51_200, END)
    nothing = search(Machine(6_399), 6_400, 51_200)
    assert (nothing.largest, nothing.stopped_by) == (None, MEMORY)
    slow = search(Machine(10**9, {25_600: "timed_out"}), 6_400, 51_200)
    assert (slow.largest, slow.stopped_by) == (12_800, TIME)
    late = find_largest(Machine(10**9), 6_400, 51_200, time.monotonic() - 1)
    assert (late.largest, late.stopped_by) == (None, TIME)
    failing = search(Machine(10**9, {4: "failed"}), 1, 8)
    assert (failing.largest, failing.stopped_by) == (2, "as planted")

    assert describe(409_600, 450_000, MEMORY) == "409,600"
    assert describe(None, 6_400, MEMORY) == "< 6,400"
    assert describe(409_600, None, TIME) == ">= 409,600 (time budget)"
    assert describe(409_600, 819_200, TIME) == "409,600 to 819,200 (time budget)"
    assert describe(51_200, None, END) == ">= 51,200 (largest of the search)"
    assert describe(None, None, TIME) == "- (time budget)"


def test_a_network_that_needs_two_images_is_searched_from_two() -> None:
    machine = Machine(5, {1: "failed"})
    found = search(machine, 1, 1_024)
    assert machine.met[:2] == [1, 2]
    assert (found.largest, found.stopped_by) == (5, MEMORY)


def arguments(**changes) -> Namespace:
    usual = {
        "config": "synthetic",
        "overrides": [],
        "losses": [NO_LOSS, "ours", "official"],
        "negatives": [500, 1_000],
        "batch": 2,
        "repeats": 1,
        "seed": 0,
        "device": "cpu",
        "time_budget": 600.0,
        "started": time.monotonic(),
        "memory_budget": 2.0,
    }
    return Namespace(**{**usual, **changes})


def test_rows_leave_the_searches_their_time_and_the_floor_is_searched_for_batches_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget, timeouts = 600.0, []

    def measured(self, loss, negatives, batch, timeout, budget=0):
        timeouts.append((budget, timeout))
        if budget:
            return MemoryUse("ok" if negatives * batch <= 12_800 else "out_of_memory", 1)
        return MemoryUse("out_of_memory", detail="not timed here")

    monkeypatch.setattr(StepRun, "_memory", measured)
    results = Results.start("step", {}, torch.device("cpu"))
    StepRun(arguments(time_budget=budget), results).run()
    assert max(timeout for of, timeout in timeouts if not of) <= budget * (1 - SEARCH_SHARE)
    found = [(item["what"], item["loss"]) for item in results.extra["largest"]]
    batches = [("batch", NO_LOSS), ("batch", "ours"), ("batch", "official")]
    assert found == [*batches, ("negatives", "ours"), ("negatives", "official")]
    lines = step_table(results).splitlines()
    assert any(line.split()[:3] == ["negatives", "ours", "6,400"] for line in lines)
    assert any(line.split()[:3] == ["batch", "ours", "12"] for line in lines)
