"""Memory on the CPU beyond inputs and outputs does not grow with the anchors, nor with A x N."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import cac_ext
from benchmarks.measure.memory_probe import PeakGrowth
from cac_ext import _C

#: Rounding by the system, and the needs of allocator and interpreter.
TOLERANCE = 16 * 2**20


@pytest.fixture(params=_C.cpu_capabilities())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.cpu_capability()
    _C.limit_cpu_capability(request.param)
    yield request.param
    _C.limit_cpu_capability(before)


def inputs(seed: int, A: int, N: int, C: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors [A, C], negatives [N, C], and the labels of both."""
    generator = torch.Generator().manual_seed(seed)

    def labels(count: int) -> Tensor:
        return torch.randint(9, (count,), generator=generator)

    anchors = torch.randn(A, C, generator=generator).requires_grad_()
    return anchors, torch.randn(N, C, generator=generator), labels(A), labels(N)


def test_many_anchors_take_the_memory_of_their_gradient_alone(
    seed: int, instruction_set: str
) -> None:
    A, N, C = 120_000, 64, 64
    cac_ext.masked_logsumexp(*inputs(seed, 64, N, C)).sum().backward()  # threads, lazy imports
    given = inputs(seed, A, N, C)
    gradient = 4 * A * C  # bytes; held from forward to backward
    numbers = 8 * 8 * A  # columns [A]: labels, intervals, schedule, values, statistics
    growth = PeakGrowth()
    value = cac_ext.masked_logsumexp(*given).sum()
    assert growth.bytes() < gradient + numbers + TOLERANCE
    value.backward()
    output, mask = gradient, A * C
    assert growth.bytes() < gradient + output + mask + numbers + TOLERANCE
    assert given[0].grad is not None


def test_float32_takes_at_most_twice_the_memory_of_the_negatives(
    seed: int, instruction_set: str
) -> None:
    A, N, C = 640, 51_200, 128
    cac_ext.masked_logsumexp(*inputs(seed, 64, 256, C)).sum().backward()
    anchors, negatives, *labels = inputs(seed, A, N, C)
    growth = PeakGrowth()
    with torch.no_grad():
        cac_ext.masked_logsumexp(anchors, negatives, *labels)
    assert growth.bytes() < 4 * N * C + TOLERANCE  # one sorted copy
    cac_ext.masked_logsumexp(anchors, negatives, *labels).sum().backward()
    assert growth.bytes() - 4 * A * C < 2 * 4 * N * C
