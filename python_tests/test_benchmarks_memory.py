"""Only the memory of the call is measured, and no call may take more than is free."""

from __future__ import annotations

import resource
import time

import pytest
import torch

from benchmarks.cases import CASES, Case, make_inputs
from benchmarks.implementations import IMPLEMENTATIONS, Implementation
from benchmarks.measure import memory_probe
from benchmarks.measure.memory import limited_memory, measure_on_gpu
from benchmarks.measure.memory_probe import PeakGrowth
from benchmarks.measure.results import Results

TINY = Case("tiny", A=16, N=32, C=8, K=3)


class Recorded(Implementation):
    """Records its calls."""

    name, description = "recorded", ""

    def __init__(self, events: list[str], compiles: bool) -> None:
        self.events, self.compiles = events, compiles

    def loss(self, inputs):
        self.events.append("call")
        return (inputs.features1 * inputs.features2).sum()

    def executed_operations(self, workload, phase: str) -> int:
        return 1


@pytest.mark.parametrize("compiles", [False, True])
def test_tuning_is_no_part_of_a_calls_memory_on_a_gpu(
    compiles: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: events.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: events.append("before") or 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: events.append("peak") or 350)
    use = measure_on_gpu(Recorded(events, compiles), make_inputs(TINY, seed))
    assert (use.status, use.extra_bytes) == ("ok", 250)
    assert events == ["call"] * compiles + ["reset", "before", "call", "peak"]


#: Rounding by the system, and the needs of allocator and interpreter. Blocks above 32 MiB come from
#: the system and return to it; the allocator may keep smaller ones.
TOLERANCE = 6 * 2**20


@pytest.mark.parametrize("mebibytes", [80, 160])
def test_the_growth_of_the_peak_is_what_was_allocated(mebibytes: int) -> None:
    size = mebibytes * 2**20
    before = torch.ones(64 * 2**20, dtype=torch.uint8)
    growth = PeakGrowth()
    assert growth.bytes() <= TOLERANCE  # earlier memory does not count
    block = torch.ones(size, dtype=torch.uint8)
    del block
    again = torch.ones(size // 2, dtype=torch.uint8)  # below the peak
    assert size <= growth.bytes() + 2**20 <= size + TOLERANCE
    del before, again


class Allocating(Implementation):
    """Takes a known amount of memory for each negative."""

    name, description = "allocating", ""
    BYTES = 2**15

    def loss(self, inputs):
        block = torch.ones(self.BYTES * len(inputs.negatives), dtype=torch.uint8)
        return (inputs.features1 * inputs.features2).sum() + 0 * block[-1].item()

    def executed_operations(self, workload, phase: str) -> int:
        return 1


def test_a_probe_finds_what_a_loss_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "allocating", Allocating)
    request = {
        "implementation": "allocating",
        "dtype": "float32",
        "seed": 0,
        "float32_matmul_precision": "highest",
        "threads": torch.get_num_threads(),
        "limit_bytes": 2**30,
    }
    for negatives in (2_048, 4_096):  # 64 and 128 MiB; the warm-up call has 256
        case = Case("known", A=16, N=negatives, C=8, K=3)
        use = memory_probe.probe({**request, "case": case.to_json()})
        wanted = negatives * Allocating.BYTES
        assert use.status == "ok"
        assert wanted <= use.extra_bytes + 2**20 <= wanted + TOLERANCE
        assert use.seconds > 0
    refused = memory_probe.probe({**request, "case": case.to_json(), "limit_bytes": 64 * 2**20})
    assert refused.status == "out_of_memory"


def test_a_probe_finds_what_a_training_step_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("omegaconf")
    from benchmarks.step import probe as step_probe

    class Step:
        """Keeps 64 MiB, and takes 96 MiB more in the step itself."""

        def __init__(self, config, loss, negatives, batch, device, seed) -> None:
            self.weights = torch.ones(2**26 if batch > 2 else 1, dtype=torch.uint8)
            self.larger = batch > 2

        def warm_up(self) -> None:
            pass

        def run(self) -> None:
            torch.ones(3 * 2**25 if self.larger else 1, dtype=torch.uint8)
            time.sleep(0.05)

    monkeypatch.setattr(step_probe, "TrainingStep", Step)
    request = {"config": "synthetic", "overrides": [], "loss": "ours", "negatives": 10, "batch": 8}
    request |= {"seed": 0, "threads": torch.get_num_threads(), "limit_bytes": 2**30}
    use = step_probe.probe(request)
    assert use.status == "ok"
    wanted = 2**26 + 3 * 2**25
    assert wanted <= use.extra_bytes + 2**20 <= wanted + TOLERANCE
    assert 0.05 <= use.seconds < 5
    assert step_probe.probe({**request, "limit_bytes": 2**25}).status == "out_of_memory"


def test_the_limit_holds_inside_and_is_lifted_again() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(RuntimeError, match="allocate memory"), limited_memory(64 * 2**20):
        torch.empty(256 * 2**20, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.empty(256 * 2**20, dtype=torch.uint8)


def test_a_timed_call_obeys_the_limit_without_any_memory_measurement(run_loss_on) -> None:
    matrix = Case("matrix", A=2_048, N=16_384, C=8, K=3)  # 128 MiB each
    results = run_loss_on(matrix, "--no-memory", "--memory-limit", "0.06")
    assert results.find("matrix", "naive", "float32", "both").status == "out_of_memory"
    assert results.find("matrix", "ours", "float32", "both").status == "ok"


def test_by_default_a_call_may_take_what_is_free(
    run_loss_on, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.measure.memory.available_memory", lambda: 64 * 2**20)
    results = run_loss_on(Case("matrix", A=2_048, N=16_384, C=8, K=3), "--no-memory")
    assert results.find("matrix", "naive", "float32", "both").status == "out_of_memory"


@pytest.fixture
def run_loss_on(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Runs `benchmarks loss` of ours and naive on one case and returns what it wrote."""
    from benchmarks.__main__ import main

    monkeypatch.setattr("benchmarks.measure.limits._SIZES", {"cpu": (1e8, 2**20)})

    def run(case: Case, *arguments: str) -> Results:
        monkeypatch.setitem(CASES, case.name, [case])
        output = tmp_path / "out.json"
        words = ["--implementations", "ours:float32", "naive", "--threads", "2", "--repeats", "1"]
        words += ["--output", str(output), *arguments]
        assert main(["loss", "--cases", case.name, *words]) == 0
        return Results.load(output)

    return run
