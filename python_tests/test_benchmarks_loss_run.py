"""`benchmarks loss` measures what runs and reports what does not, without failing itself."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.implementations.contenders import float32_products
from benchmarks.loss.table import loss_table
from benchmarks.measure import memory
from benchmarks.measure.children import Ended
from benchmarks.measure.results import Results
from benchmarks.measure.units import percent
from benchmarks.operations import PHASES

TINY = Case("tiny", A=64, N=512, C=16, K=5)


@pytest.fixture
def run_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command on one tiny case and returns what it wrote."""
    monkeypatch.setitem(CASES, "tiny", [TINY])
    # Small yardsticks are measured faster.
    monkeypatch.setattr("benchmarks.measure.limits._SIZES", {"cpu": (1e8, 2**20)})

    def run(*arguments: str) -> Results:
        output = tmp_path / "out.json"
        common = ["--threads", "2", "--repeats", "3", "--output", str(output)]
        assert main(["loss", "--cases", "tiny", *common, *arguments]) == 0
        return Results.load(output)

    return run


def test_every_phase_is_timed_and_rated(run_loss, capsys) -> None:
    results = run_loss("--implementations", "ours", "tiled:float32", "--no-memory")
    for implementation, dtype in (("ours", "float32"), ("ours", "bfloat16"), ("tiled", "float32")):
        for phase in PHASES:
            row = results.find("tiny", implementation, dtype, phase)
            assert row.status == "ok"
            assert len(row.samples) == 3
        assert row.share_of_matrix_rate is None  # a backward pass without matrix products
        both = results.find("tiny", implementation, dtype, "both")
        assert both.share_of_matrix_rate > 0
        assert both.executed_operations < both.nominal_operations
    assert all(check["passed"] for check in results.checks)
    assert "vs official" in capsys.readouterr().out


def test_a_type_sets_the_precision_of_float32_products_for_everyone(
    run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def watch(name: str, right):
        def loss(self, inputs):
            if inputs.features1.dtype == torch.float32:
                seen.add((name, torch.get_float32_matmul_precision()))
            return right(self, inputs)

        monkeypatch.setattr(IMPLEMENTATIONS[name], "loss", loss)

    names = ["ours", "tiled"]
    for name in names:
        watch(name, IMPLEMENTATIONS[name].loss)
    before = torch.get_float32_matmul_precision()
    in_children = []

    def measure(name, *arguments, **options):
        in_children.append((name, torch.get_float32_matmul_precision()))
        return memory.MemoryUse("ok", 2**20, 1e-3)

    monkeypatch.setattr("benchmarks.loss.case.measure_in_child", measure)
    results = run_loss("--implementations", *[f"{name}:float32-high" for name in names])
    assert seen == set(in_children) == {(name, "high") for name in names}
    seen.clear()
    run_loss("--implementations", *[f"{name}:float32" for name in names], "--no-memory")
    assert seen == {(name, "highest") for name in names}
    assert torch.get_float32_matmul_precision() == before
    rows = [results.find("tiny", name, "float32-high", "both") for name in names]
    assert all(row.status == "ok" and row.share_of_matrix_rate > 0 for row in rows)
    # The requested products count, not the several products that one may consist of.
    assert rows[0].executed_operations == rows[1].executed_operations
    assert {check["dtype"] for check in results.checks} == {"float32-high"}
    assert "fp32-high" in loss_table(results)


def test_out_of_memory_is_a_row(run_loss, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = IMPLEMENTATIONS["naive"]
    right = naive.loss

    def refuse(self, inputs):
        if len(inputs.negatives) == TINY.N:
            torch.empty(2**62, dtype=torch.uint8)
        return right(self, inputs)

    monkeypatch.setattr(naive, "loss", refuse)
    results = run_loss("--implementations", "naive", "tiled:float32", "--no-memory")
    (row,) = [row for row in results.rows if row.implementation == "naive"]
    assert row.status == "out_of_memory"
    assert results.find("tiny", "tiled", "float32", "both").status == "ok"
    assert "out of memory" in loss_table(results)


def test_a_wrong_rival_is_not_timed(run_loss, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = IMPLEMENTATIONS["naive"]
    right = naive.loss
    monkeypatch.setattr(naive, "loss", lambda self, inputs: 1.01 * right(self, inputs))
    results = run_loss("--implementations", "naive", "--no-memory")
    (row,) = results.rows
    assert row.status == "failed"
    assert "wrong result" in row.detail
    assert not row.samples


def test_what_the_device_cannot_run_is_skipped_with_the_reason(run_loss) -> None:
    (row,) = run_loss("--implementations", "tiled:float16", "--no-memory").rows
    assert row.status == "skipped"
    assert "float16" in row.detail


def test_memory_of_a_child_process_sees_the_matrices() -> None:
    case = Case("matrix", A=1_024, N=8_192, C=16, K=5)
    matrix = 4 * case.A * case.N  # 32 MiB
    naive = memory.measure_in_child("naive", torch.float32, case, seed=0)
    assert naive.status == "ok"
    # In each direction the scores, masked and with the positives, and their gradients.
    assert 4 * matrix < naive.extra_bytes < 7 * matrix


def test_a_child_process_is_asked_for_what_is_measured_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def run_child(module, request, timeout):
        asked.append((module, request, timeout))
        return Ended(0, 'a warning\n{"status": "ok", "extra_bytes": 7}\n')

    monkeypatch.setattr(memory, "run_child", run_child)
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000)
    with float32_products("high"):
        use = memory.measure_in_child("naive", torch.bfloat16, TINY, 3, timeout=5.0)
        memory.measure_in_child("naive", torch.bfloat16, TINY, 3, limit_bytes=50)
    assert use == memory.MemoryUse("ok", 7)
    request = {
        "implementation": "naive",
        "dtype": "bfloat16",
        "case": TINY.to_json(),
        "seed": 3,
        "float32_matmul_precision": "high",
        "limit_bytes": 900,  # 90% of the free memory
        "threads": torch.get_num_threads(),
    }
    assert asked[0] == ("benchmarks.measure.memory_probe", request, 5.0)
    assert asked[1] == ("benchmarks.measure.memory_probe", {**request, "limit_bytes": 50}, None)


@pytest.mark.parametrize(
    ("ended", "status", "detail"),
    [
        (Ended(None), "timed_out", "not done after 5 s"),
        (Ended(-signal.SIGKILL), "out_of_memory", "the system killed the process"),
        (Ended(-signal.SIGABRT, "", "what(): std::bad_alloc"), "out_of_memory", "std::bad_alloc"),
        (Ended(-signal.SIGABRT, "", "double free"), "failed", "double free"),
        (Ended(1, "", "Traceback\nValueError: no\n"), "failed", "ValueError: no"),
        (Ended(-signal.SIGSEGV), "failed", "exit code -11"),
    ],
)
def test_how_a_child_process_ended_is_reported(
    ended: Ended, status: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "run_child", lambda *arguments: ended)
    use = memory.measure_in_child("naive", torch.float32, TINY, 0, timeout=5.0)
    assert use == memory.MemoryUse(status, detail=detail)


def test_unknown_names_are_answered_with_the_known_ones(capsys) -> None:
    assert main(["loss", "--cases", "vox"]) == 2
    assert "voc" in capsys.readouterr().err
    assert main(["loss", "--implementations", "tilde"]) == 2
    assert "tiled" in capsys.readouterr().err
    assert main(["loss", "--implementations", "tiled:float31"]) == 2
    assert "float32-high" in capsys.readouterr().err


def test_a_hopeless_rival_does_not_hold_up_the_others(
    run_loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = IMPLEMENTATIONS["naive"]
    monkeypatch.setattr(naive, "executed_operations", lambda self, workload, phase: 10**18)
    monkeypatch.setattr(
        "benchmarks.loss.check.time_training", lambda loss, inputs: {"both": 1e12, "backward": 1.0}
    )
    (row,) = run_loss("--implementations", "naive", "--no-memory").rows
    assert row.status == "skipped"
    assert "time budget" in row.detail


def test_everyone_is_checked_at_the_channels_and_classes_of_each_case(
    run_loss, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    cases = [
        Case("narrow", 64, 512, 16, 5),
        Case("wide", 64, 512, 48, 5),
        Case("long", 64, 900, 16, 5),
    ]
    monkeypatch.setitem(CASES, "tiny", cases)
    naive = IMPLEMENTATIONS["naive"]
    right = naive.loss

    def wrong_if_wide(self, inputs):
        return right(self, inputs) * (1.01 if inputs.negatives.shape[1] == 48 else 1.0)

    monkeypatch.setattr(naive, "loss", wrong_if_wide)
    results = run_loss("--implementations", "naive", "ours:float32", "--no-memory")
    checked = [(check["implementation"], check["C"], check["K"]) for check in results.checks]
    assert checked == [(name, C, 5) for C in (16, 48) for name in ("naive", "ours")]
    row = results.find("wide", "naive", "float32", "both")
    assert row.status == "failed"
    assert "C = 48, K = 5" in row.detail
    for case in ("narrow", "long"):
        assert results.find(case, "naive", "float32", "both").status == "ok"
    printed = capsys.readouterr().out
    assert "reference at C=16 K=5 (A=160 N=9,000), C=48 K=5 (A=160 N=9,000)" in printed


def test_every_case_has_its_own_matrix_product_rate(
    run_loss, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    rates = {"slow": 1e9, "fast": 4e9, "medium": 2e9}
    monkeypatch.setitem(CASES, "tiny", [Case(name, 64, 512, 16, 5) for name in rates])
    remaining = list(rates.values())

    class Rate:
        def __init__(self, device, dtype, channels, seconds):
            self.rate, self.expected = remaining.pop(0), 0.0

        def sample(self):
            pass

        def result(self):
            return {
                "operations_per_second": self.rate,
                "shape": [8, 8, 8],
                "shapes": {},
                "smaller": {},
            }

    monkeypatch.setattr("benchmarks.measure.limits.MatrixRate", Rate)
    results = run_loss("--implementations", "ours:float32", "--no-memory")
    assert {name: case["matrix_rate"]["float32"] for name, case in results.cases.items()} == rates
    best = results.limits["matrix_rate"]["float32"]
    assert (best["operations_per_second"], best["case"]) == (4e9, "fast")
    for row in results.rows:
        if row.phase == "both":
            share = row.executed_operations / row.median / rates[row.case]
            assert row.share_of_matrix_rate == pytest.approx(share)
    printed = capsys.readouterr().out
    for rate in (1, 4, 2):
        assert f"matrix product: {rate} Gop/s fp32" in printed


def test_the_table_says_what_share_of_the_equations_operations_is_executed(
    run_loss, capsys
) -> None:
    results = run_loss("--implementations", "ours:float32", "naive", "--no-memory")
    row = results.find("tiny", "ours", "float32", "both")
    share = percent(row.executed_operations / row.nominal_operations)
    line = f"executed, of 4C operations for every pair in each direction: ours {share}, naive 100%"
    assert line in capsys.readouterr().out
