"""Yardsticks of the machine, measured in the same run as the losses.

They are rates that torch reaches on it, not limits of the hardware: a kernel of another library, or
one that makes a product of other numbers (float32 as sums of bfloat16), can be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.timing import Clock, percentile

#: Operations of one timed product, and bytes of one timed copy's source.
_SIZES = {"cpu": (2e10, 256 * 2**20), "cuda": (2e11, 512 * 2**20)}
#: The operands stay while the losses are measured, so they must not fill a GPU.
_MOST_COLUMNS = 32_768
#: A cube of twice the edge, eight times the work, is timed this often at most.
_LARGE_SAMPLES = 3


@dataclass
class _Product:
    """``[m, k] @ [k, n]`` with contiguous operands; transposed, the second lies as ``[n, k]``."""

    m: int
    k: int
    n: int
    transposed: bool
    most_samples: int | None = None
    samples: list[float] = field(default_factory=list)

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        self.left = torch.randn(self.m, self.k, device=device).to(dtype)
        right = (self.n, self.k) if self.transposed else (self.k, self.n)
        self.right = torch.randn(*right, device=device).to(dtype)
        self.right = self.right.T if self.transposed else self.right
        self.out = self.left.new_empty(self.m, self.n)

    def run(self) -> None:
        torch.mm(self.left, self.right, out=self.out)

    @property
    def rate(self) -> float:
        return 2 * self.m * self.k * self.n / percentile(self.samples, 0.5)

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}" + (" transposed" if self.transposed else "")


class MatrixRate:
    """The highest rate of torch's matrix product in one type over five shapes.

    They are the loss's own two products (anchors by negatives transposed; weights of the negatives
    by negatives), cubes of about as much work in both layouts, and a cube of eight times the work,
    because libraries are tuned to large cubes.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, channels: int) -> None:
        self._device = device
        total = _SIZES[device.type][0]
        if device.type == "cpu" and dtype == torch.float32:
            total /= 4  # a quarter of the rate, hence of the work
        edge = round((total / 2) ** (1 / 3) / 128) * 128
        rows = 4_096
        columns = min(round(total / (2 * channels * rows) / 128) * 128, _MOST_COLUMNS)
        self._products = [
            _Product(rows, channels, columns, transposed=True),
            _Product(rows, columns, channels, transposed=False),
            _Product(edge, edge, edge, transposed=True),
            _Product(edge, edge, edge, transposed=False),
            _Product(2 * edge, 2 * edge, 2 * edge, False, _LARGE_SAMPLES),
        ]
        for product in self._products:
            product.allocate(device, dtype)
            product.run()  # warm-up

    def sample(self) -> None:
        """Time every shape once more."""
        for product in self._products:
            if product.most_samples is None or len(product.samples) < product.most_samples:
                product.samples.append(_timed(self._device, product.run))

    def result(self) -> dict:
        """``{"operations_per_second", "shape", "shapes": {...}}``; the rate is the best median."""
        best = max(self._products, key=lambda product: product.rate)
        return {
            "operations_per_second": best.rate,
            "shape": [best.m, best.k, best.n],
            "shapes": {str(product): product.rate for product in self._products},
        }


def memory_bandwidth(device: torch.device, repeats: int = 7) -> float:
    """Bytes a second of a large copy by torch, read and write counted."""
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
