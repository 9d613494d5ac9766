"""The yardstick of matrix products: the loss's own layouts and cubes, the large one rarely."""

from __future__ import annotations

import pytest
import torch

from benchmarks import machine_limits
from benchmarks.machine_limits import MatrixRate


def test_the_rate_is_the_best_of_the_losss_products_and_cubes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_limits, "_SIZES", {"cpu": (4e9, 2**20)})
    multiplied = []
    right = torch.mm

    def watched(left, other, out):
        multiplied.append((*left.shape, other.shape[1], other.is_contiguous()))
        return right(left, other, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    rate = MatrixRate(torch.device("cpu"), torch.float32, channels=64)
    warm_up = list(multiplied)
    (rows, channels, columns, first_layout), second, *cubes = warm_up
    assert (channels, first_layout) == (64, False)  # anchors by negatives transposed
    assert second == (rows, columns, 64, True)  # weights by negatives
    edges = [edge for edge, *_ in cubes]
    assert edges[2] == 2 * edges[0] == 2 * edges[1]
    assert {contiguous for *_, contiguous in cubes[:2]} == {True, False}

    multiplied.clear()
    for _ in range(5):
        rate.sample()
    counts = [multiplied.count(product) for product in warm_up]
    assert counts == [5, 5, 5, 5, 3]
    result = rate.result()
    assert len(result["shapes"]) == 5
    assert result["operations_per_second"] == max(result["shapes"].values())
