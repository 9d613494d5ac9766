"""How time and memory grow with each size: fitted laws, and what follows for several processes.

A series holds cases that differ in one size alone. Its law ``value = factor * size ^ exponent`` is
the least-squares line through the logarithms; the error is the standard error of the slope.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.measure.records import CaseRecord
from benchmarks.measure.results import Results, Row

Size = Literal["A", "N", "C", "K"]
SIZES: tuple[Size, ...] = ("A", "N", "C", "K")
FEWEST = 3  # sizes of a series: two points have no error

#: What is fitted, by name: from a row, None if it was not measured.
QUANTITIES: dict[str, Callable[[Row], float | None]] = {
    "time": lambda row: row.median if row.samples else None,
    "memory": lambda row: row.extra_memory,
}


@dataclass(frozen=True)
class Law:
    """``factor * size ^ exponent``, fitted to ``count`` points."""

    factor: float
    exponent: float
    error: float  # standard error of the exponent
    count: int

    def at(self, size: float) -> float:
        return self.factor * size**self.exponent

    def exponent_text(self) -> str:
        """``0.98 +- 0.01``."""
        return f"{round(self.exponent, 2) + 0.0:.2f} +- {self.error:.2f}"  # no "-0.00"


def series_in(results: Results, size: Size) -> dict[str, CaseRecord]:
    """The largest set of cases that differ in ``size`` alone, the smallest size first."""
    sets: dict[tuple[float, ...], dict[str, CaseRecord]] = defaultdict(dict)
    for name, case in results.cases.items():
        others = [case[other] for other in SIZES if other != size]
        fixed = (*others, case["active_share"], case["background_share"])
        sets[fixed][name] = case
    largest: dict[str, CaseRecord] = max(
        sets.values(), key=lambda cases: len({case[size] for case in cases.values()}), default={}
    )
    return dict(sorted(largest.items(), key=lambda item: item[1][size]))


def points_of(
    results: Results, size: Size, quantity: str, implementation: str, dtype: str
) -> list[tuple[int, float]]:
    """``(size, value)`` of loss and gradient in the series, each size once."""
    points: dict[int, float] = {}
    for name, case in series_in(results, size).items():
        row = results.find(name, implementation, dtype, "both")
        value = QUANTITIES[quantity](row) if row is not None and row.status == "ok" else None
        if value:
            points.setdefault(case[size], value)
    return list(points.items())


def fit(points: Sequence[tuple[float, float]]) -> Law | None:
    """The law of the points; None if they are fewer than three sizes."""
    if len({size for size, _ in points}) < FEWEST:
        return None
    x, y = np.log(np.array(points, dtype=np.float64)).T
    (exponent, offset), covariance = np.polyfit(x, y, 1, cov=True)
    error = float(np.sqrt(covariance[0, 0]))
    return Law(float(np.exp(offset)), float(exponent), error, len(points))


def contenders_of(results: Results) -> list[tuple[str, str]]:
    """``(implementation, type)`` of every row of loss and gradient, in their order."""
    rows = (row for row in results.rows if row.phase == "both")
    return list(dict.fromkeys((row.implementation, row.dtype) for row in rows))


@dataclass(frozen=True)
class Ranks:
    """A step of R processes, calculated from constants that were measured on one.

    Each process has the same images and anchors, whatever R; the negatives of all processes meet
    in every loss. Equal processors, gathering after the forward pass, nothing overlaps.

    Attributes:
        images: unlabelled images of a process.
        anchors: overlap positions of a process, A.
        rows: new negatives of a process in a step.
        steps: of the memory bank, the current one included.
        channels: of a negative, in float32.
        network: seconds of a step without the loss.
        fixed: seconds of a loss without negatives.
        per_negative: seconds of the loss that each negative adds.
        bandwidth: bytes that a process receives in a second.
    """

    images: int
    anchors: int
    rows: int
    steps: int
    channels: int
    network: float
    fixed: float
    per_negative: float
    bandwidth: float

    @property
    def row_bytes(self) -> int:
        """A gathered row: float32 features and a label of 4 bytes."""
        return 4 * self.channels + 4

    def negatives(self, ranks: int) -> int:
        """N of each loss."""
        return ranks * self.rows * self.steps

    def gathered_bytes(self, ranks: int, *, in_chunks: bool = False) -> int:
        """Received by a process in a step; in chunks the whole bank travels every time."""
        return (ranks - 1) * self.rows * self.row_bytes * (self.steps if in_chunks else 1)

    def loss(self, ranks: int) -> float:
        """Seconds of loss and gradient."""
        return self.fixed + self.per_negative * self.negatives(ranks)

    def gather(self, ranks: int, *, in_chunks: bool = False) -> float:
        """Seconds of the gathering."""
        return self.gathered_bytes(ranks, in_chunks=in_chunks) / self.bandwidth

    def step(self, ranks: int, *, in_chunks: bool = False) -> float:
        """Seconds of a step."""
        return self.network + self.loss(ranks) + self.gather(ranks, in_chunks=in_chunks)

    def efficiency(self, ranks: int) -> float:
        """Images a second of each process, against one process alone."""
        return self.step(1) / self.step(ranks)

    def most(self) -> int:
        """The most ranks of which a process still does half the work of one alone."""
        return int(1 + self.step(1) / (self.step(2) - self.step(1)))


def line_in_n(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """``(at N = 0, for each negative)`` of a straight line that weighs relative errors equally."""
    N, seconds = np.array(points, dtype=np.float64).T
    slope, offset = np.polyfit(N, seconds, 1, w=1 / seconds)
    return max(float(offset), 0.0), float(slope)


def exponents_of(results: Results) -> tuple[list[str], list[list[str]], str]:
    """Header and lines of a table of all exponents, and the range of each size."""
    sizes = [size for size in SIZES if len(_distinct(results, size)) >= FEWEST]
    header = ["implementation", "type"]
    header += [f"{quantity} by {size}" for quantity in QUANTITIES for size in sizes]
    lines = []
    for implementation, dtype in contenders_of(results):
        cells = []
        for quantity in QUANTITIES:
            for size in sizes:
                law = fit(points_of(results, size, quantity, implementation, dtype))
                cells.append(
                    "-" if law is None else f"{round(law.exponent, 2) + 0.0:.2f} +- {law.error:.2f}"
                )
        if any(cell != "-" for cell in cells):
            lines.append([implementation, dtype, *cells])
    ranges = []
    for size in sizes:
        values = _distinct(results, size)
        ranges.append(f"{size} {values[0]:,} to {values[-1]:,} ({len(values)} sizes)")
    return header, lines, ", ".join(ranges)


def _distinct(results: Results, size: Size) -> list[int]:
    return sorted({case[size] for case in series_in(results, size).values()})
