"""What the machine can do at best, measured in the same run as the losses."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import Clock, percentile

#: Operations of one timed product, and bytes of one timed copy's source.
_SIZES = {"cpu": (2e10, 256 * 2**20), "cuda": (2e11, 2 * 2**30)}


class MatrixRate:
    """The highest rate of torch's matrix product in one type, over shapes of equal total work.

    The shapes are the loss's own two products and a cube, for which libraries are tuned best.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, channels: int) -> None:
        self._device = device
        total = _SIZES[device.type][0]
        if device.type == "cpu" and dtype == torch.float32:
            total /= 4  # a quarter of the rate, hence of the work
        edge = round((total / 2) ** (1 / 3) / 128) * 128
        rows = 4_096
        columns = round(total / (2 * channels * rows) / 128) * 128
        #: (m, k, n) of [m, k] @ [k, n]
        self.shapes = [(edge, edge, edge), (rows, channels, columns), (rows, columns, channels)]
        self._operands = []
        for m, k, n in self.shapes:
            left = torch.randn(m, k, device=device).to(dtype)
            right = torch.randn(n, k, device=device).to(dtype).T
            self._operands.append((left, right, left.new_empty(m, n)))
        self._samples: list[list[float]] = [[] for _ in self.shapes]
        for operands in self._operands:  # warm-up
            torch.mm(operands[0], operands[1], out=operands[2])

    def sample(self) -> None:
        """Time every shape once more."""
        for operands, samples in zip(self._operands, self._samples, strict=True):
            samples.append(_timed(self._device, lambda o=operands: torch.mm(o[0], o[1], out=o[2])))

    def result(self) -> dict:
        """``{"operations_per_second", "shape", "shapes": {...}}``; the rate is the best median."""
        rates = {
            shape: 2 * shape[0] * shape[1] * shape[2] / percentile(samples, 0.5)
            for shape, samples in zip(self.shapes, self._samples, strict=True)
        }
        best = max(rates, key=lambda shape: rates[shape])
        return {
            "operations_per_second": rates[best],
            "shape": list(best),
            "shapes": {"x".join(map(str, shape)): rate for shape, rate in rates.items()},
        }


def memory_bandwidth(device: torch.device, repeats: int = 7) -> float:
    """Bytes a second of a large copy, read and write counted."""
    size = _SIZES[device.type][1]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    samples = [_timed(device, lambda: target.copy_(source)) for _ in range(repeats + 1)][1:]
    return 2 * size / percentile(samples, 0.5)


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    clock = Clock(device)
    clock.mark()
    work()
    clock.mark()
    return clock.intervals()[0]
