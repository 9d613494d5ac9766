"""Yardsticks of the machine, measured in the same run as the losses.

They are rates that torch reaches on it, not limits of the hardware: a kernel of another library, or
one that multiplies other numbers (float32 as sums of bfloat16), can be faster.

Some processors multiply some types hundreds of times slower than others, on one thread. So every
product grows from a small one as far as its time allows, and each is predicted before it begins.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.implementations.contenders import TYPES, float32_products
from benchmarks.measure.memory import first_line, free_bytes, limited_memory
from benchmarks.measure.records import MatrixRateRecord
from benchmarks.measure.timing import Clock, percentile

#: By device: operations of one timed product, bytes that one timed copy reads.
_SIZES = {"cpu": (2e10, 256 * 2**20), "cuda": (2e11, 512 * 2**20)}
#: The operands stay while the losses are measured, so they must not fill a GPU.
_MOST_COLUMNS = 32_768
#: Most samples of the large cube: twice the edge, eight times the work.
_LARGE_SAMPLES = 3
#: Largest edge of the product from which every product grows.
_SMALL = 256
#: Most by which the work of a growing product is multiplied at once.
_GROWTH = 8
#: Calls that must fit into the time of a product; all calls while it grows count as one.
_CALLS = 4


@dataclass
class _Product:
    """``[m, k] @ [k, n]``, contiguous; if transposed, the second is stored as ``[n, k]``."""

    m: int
    k: int
    n: int
    transposed: bool
    most_samples: int | None = None
    samples: list[float] = field(default_factory=list)
    whole: str = ""  # the wanted shape, if this one has less than half of its operations

    def grow(self, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
        """Grow to the wanted shape within ``seconds`` a call; returns the seconds of a call."""
        wanted, name = (self.m, self.k, self.n), str(self)
        size = tuple(min(edge, _SMALL) for edge in wanted)
        while True:
            self.m, self.k, self.n = size
            self._allocate(device, dtype)
            taken = min(_timed(device, self.run) for _ in range(2))  # the first one warms up
            rate = self.operations / max(taken, 1e-9)
            work = min(_GROWTH * self.operations, rate * seconds)
            larger = _scaled(wanted, work)
            if size == wanted or (larger != wanted and math.prod(larger) < 1.2 * math.prod(size)):
                break
            size = larger
        if math.prod(size) < math.prod(wanted) / 2:
            self.whole = name
        return taken

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        self.left = _noise(self.m, self.k, device, dtype)
        right = (self.n, self.k) if self.transposed else (self.k, self.n)
        self.right = _noise(*right, device, dtype)
        self.right = self.right.T if self.transposed else self.right
        self.out = self.left.new_empty(self.m, self.n)

    def run(self) -> None:
        torch.mm(self.left, self.right, out=self.out)

    @property
    def operations(self) -> int:
        return 2 * self.m * self.k * self.n

    @property
    def rate(self) -> float:
        return self.operations / percentile(self.samples, 0.5)

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}" + (" transposed" if self.transposed else "")


def _noise(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """``[rows, columns]``: random numbers, repeated because drawing all would take seconds."""
    few = torch.randn(65_537, device=device).to(dtype)
    return few.repeat(-(-rows * columns // len(few)))[: rows * columns].view(rows, columns)


def _scaled(wanted: tuple[int, ...], work: float) -> tuple[int, ...]:
    """The shape, or a similar one of ``work`` operations; small edges stay."""
    size = list(wanted)
    free = [i for i, edge in enumerate(wanted) if edge > _SMALL]
    if 2 * math.prod(wanted) <= work or not free:
        return wanted
    factor = (work / (2 * math.prod(wanted))) ** (1 / len(free))
    for i in free:
        size[i] = max(round(wanted[i] * factor / 64) * 64, _SMALL)
    return tuple(size)


class MatrixRate:
    """The highest rate of torch's matrix product in one type over five shapes.

    They are the two products of the loss (anchors by negatives transposed; weights of the negatives
    by negatives), cubes of about the same work in both layouts, and a cube of eight times the work,
    because libraries are tuned to large cubes.

    Args:
        device, dtype: of the operands.
        channels: C, the short edge of the products of the loss.
        seconds: for all shapes, `_CALLS` calls each. Products that would take longer are smaller.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        channels: int,
        seconds: float = math.inf,
    ) -> None:
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
        each = seconds / len(self._products) / _CALLS
        #: Approximate seconds of one `sample`.
        self.expected = sum(product.grow(device, dtype, each) for product in self._products)

    def sample(self) -> None:
        """Time every shape once more."""
        for product in self._products:
            if product.most_samples is None or len(product.samples) < product.most_samples:
                product.samples.append(_timed(self._device, product.run))

    def result(self) -> MatrixRateRecord:
        """The rates by the median of each shape."""
        best = max(self._products, key=lambda product: product.rate)
        return {
            "operations_per_second": best.rate,
            "shape": [best.m, best.k, best.n],
            "shapes": {str(product): product.rate for product in self._products},
            "smaller": {product.whole: str(product) for product in self._products if product.whole},
        }


class MatrixRates:
    """The rates of all input types of a case, within a common time.

    Args:
        device, channels: as of `MatrixRate`.
        types: how many input types there will be.
        seconds: for all types and rounds together.
        deadline: a measurement that is predicted to end later is not begun.
    """

    def __init__(
        self,
        device: torch.device,
        channels: int,
        types: int,
        seconds: float = math.inf,
        deadline: float = math.inf,
    ) -> None:
        self._device, self._channels, self._deadline = device, channels, deadline
        self._share = seconds / max(types, 1)
        self._rest = seconds
        self._rates: dict[str, MatrixRate] = {}
        #: Input type -> why it has no rate.
        self.missing: dict[str, str] = {}

    @property
    def _left(self) -> float:
        return min(self._rest, self._deadline - time.monotonic())

    def add(self, name: str) -> None:
        """Measure the rate of an input type, a name of `TYPES`, for the first time."""
        if name in self._rates or name in self.missing:
            return
        dtype, precision = TYPES[name]
        seconds = min(self._share, self._left)
        if seconds <= 0:
            self.missing[name] = "the time budget was used up"
            return
        start = time.monotonic()
        try:
            with float32_products(precision), _within_memory(self._device):
                rate = MatrixRate(self._device, dtype, self._channels, seconds)
                rate.sample()  # an interrupted case has this one
            self._rates[name] = rate
        except Exception as error:  # no memory, or torch cannot multiply this type here
            self.missing[name] = first_line(error)
        self._rest -= time.monotonic() - start

    def sample(self) -> None:
        """Time every shape of every type once more, if time allows."""
        for name, rate in self._rates.items():
            if rate.expected > self._left:
                continue
            start = time.monotonic()
            with float32_products(TYPES[name][1]):
                rate.sample()
            self._rest -= time.monotonic() - start

    def results(self) -> dict[str, MatrixRateRecord]:
        """By input type, without those of `missing`."""
        return {name: rate.result() for name, rate in self._rates.items()}


def memory_bandwidth(device: torch.device, repeats: int = 7, seconds: float = math.inf) -> float:
    """Bytes a second of a large copy by torch, reads and writes counted.

    Two copies are always made and the second is timed; more follow while ``seconds`` are left.
    """
    end = time.monotonic() + seconds
    size = _SIZES[device.type][1]
    if device.type == "cpu":
        size = min(size, max((free_bytes() or 8 * size) // 8, 2**20))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    samples = [_timed(device, lambda: target.copy_(source))]
    while len(samples) < repeats and time.monotonic() + samples[-1] < end:
        samples.append(_timed(device, lambda: target.copy_(source)))
    return 2 * size / percentile(samples, 0.5)


def _within_memory(device: torch.device) -> contextlib.AbstractContextManager[None]:
    return limited_memory(0 if device.type == "cuda" else free_bytes())


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    clock = Clock(device)
    clock.mark()
    work()
    clock.mark()
    return clock.intervals()[0]
