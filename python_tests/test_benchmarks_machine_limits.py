"""The yardsticks: products of the loss and cubes, each within its time."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.measure import limits
from benchmarks.measure.limits import MatrixRate, MatrixRates, memory_bandwidth

CPU = torch.device("cpu")


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list:
    """Shapes and layouts of all later products, which take no time here."""
    made = []

    def multiply(left, right, out):
        made.append((*left.shape, right.shape[1], right.is_contiguous()))

    monkeypatch.setattr(limits, "_SIZES", {"cpu": (4e9, 2**20)})
    monkeypatch.setattr(torch, "mm", multiply)
    return made


def test_the_rate_is_of_the_losss_products_and_of_cubes(multiplied: list) -> None:
    rate = MatrixRate(CPU, torch.float32, channels=64)
    multiplied.clear()
    rate.sample()
    first, second, *cubes = list(multiplied)
    rows, _, columns, _ = first
    assert first == (rows, 64, columns, False)  # anchors by negatives transposed
    assert second == (rows, columns, 64, True)  # weights by negatives
    assert 2 * 64 * rows * columns == pytest.approx(1e9, rel=0.1)  # a quarter, as it is float32
    edges = [edge for edge, *_ in cubes]
    assert edges[2] == 2 * edges[0] == 2 * edges[1]
    assert 2 * edges[0] ** 3 == pytest.approx(1e9, rel=0.4)
    assert [contiguous for *_, contiguous in cubes] == [False, True, True]
    for _ in range(4):
        rate.sample()
    counts = [multiplied.count(product) for product in (first, second, *cubes)]
    assert counts == [5, 5, 5, 5, 3]


def test_the_rate_is_the_best_median(multiplied: list, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = MatrixRate(CPU, torch.float32, channels=64)
    # Five shapes, three samples each; the third shape is the fastest.
    seconds = iter([0.5, 0.5, 0.002, 0.5, 9.0] * 2 + [0.5, 0.5, 7.0, 0.5, 9.0])

    def timed(device, work):
        work()
        return next(seconds)

    monkeypatch.setattr(limits, "_timed", timed)
    for _ in range(3):
        rate.sample()
    result = rate.result()
    edge, middle, last = result["shape"]
    assert edge == middle == last
    assert result["operations_per_second"] == pytest.approx(2 * edge**3 / 0.002)
    assert result["shapes"][f"{edge}x{edge}x{edge} transposed"] == result["operations_per_second"]
    assert len(result["shapes"]) == 5
    assert result["smaller"] == {}


#: Operations a second of a made-up processor that multiplies bfloat16 on one thread, naively.
SLOW = 2e9


@pytest.fixture
def slow_processor(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every product takes as long as on that processor, uninterruptible; returns all seconds."""
    calls: list[float] = []

    def multiply(left, right, out):
        calls.append(2 * left.shape[0] * left.shape[1] * right.shape[1] / SLOW)
        time.sleep(calls[-1])

    monkeypatch.setattr(torch, "mm", multiply)
    return calls


def test_no_product_is_begun_that_would_take_too_long(slow_processor: list[float]) -> None:
    budget = 0.6  # the products of the usual size take two minutes
    rate = MatrixRate(CPU, torch.bfloat16, channels=128, seconds=budget)
    rate.sample()
    assert sum(slow_processor) < 1.5 * budget
    # Five shapes with four calls each; a shape grows in steps, and 64 is the least of them.
    assert max(slow_processor) <= 1.5 * budget / 20
    result = rate.result()
    assert result["operations_per_second"] == pytest.approx(SLOW, rel=0.5)
    wanted = {"4096x128x19072 transposed", "4096x19072x128", "2176x2176x2176 transposed"}
    assert result["smaller"].keys() == {*wanted, "2176x2176x2176", "4352x4352x4352"}
    assert set(result["smaller"].values()) <= result["shapes"].keys()


def test_all_types_and_rounds_together_keep_to_their_time(slow_processor: list[float]) -> None:
    budget = 1.0
    rates = MatrixRates(CPU, channels=128, types=3, seconds=budget)
    for name in ("float32", "float32-high", "bfloat16"):
        rates.add(name)
        rates.add(name)  # known already
    assert rates.results().keys() == {"float32", "float32-high", "bfloat16"}
    for _ in range(50):
        rates.sample()
    assert sum(slow_processor) < 1.2 * budget


def test_a_type_without_time_or_memory_has_the_reason_in_place_of_a_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = MatrixRates(CPU, channels=128, types=1, seconds=5.0, deadline=time.monotonic() - 1)
    rates.add("float32")
    assert (rates.results(), rates.missing) == ({}, {"float32": "the time budget was used up"})

    def refuse(*arguments, **options):
        raise RuntimeError("addmm_impl_cpu_ not implemented for 'Half'")

    monkeypatch.setattr(torch, "mm", refuse)
    rates = MatrixRates(CPU, channels=128, types=1)
    rates.add("float16")
    assert "not implemented for 'Half'" in rates.missing["float16"]
    rates.sample()  # nothing to time


def test_the_bandwidth_is_of_bytes_read_and_written_within_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "_SIZES", {"cpu": (1e8, 2**20)})
    seconds = iter([0.5, 0.25, 9.0])

    def timed(device, work):
        work()
        return next(seconds)

    monkeypatch.setattr(limits, "_timed", timed)
    assert memory_bandwidth(CPU, repeats=3) == 2 * 2**20 / 0.5
    seconds = iter([30.0, 1.0])
    assert memory_bandwidth(CPU, seconds=20.0) == 2 * 2**20 / 30.0


def test_the_bandwidth_is_the_machines() -> None:
    """Against a copy by hand, within the factor of a busy machine."""
    source = bytearray(64 * 2**20)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        bytes(source)
        taken.append(time.perf_counter() - start)
    by_hand = 2 * len(source) / min(taken)
    assert by_hand / 10 < memory_bandwidth(CPU) < by_hand * 50
