"""What the processor multiplies at most, measured in the same run as the losses.

A loop of multiply-adds on registers (`cac_ext.cpu_peak`) is the limit of the hardware for the
instructions that an implementation uses. So its share counts every product that is executed: a
product of float32 that is made of six products of bfloat16 counts as six, against the rate of
bfloat16.
"""

from __future__ import annotations

import torch

import cac_ext
from benchmarks.implementations.contenders import Contender, float32_products
from benchmarks.measure.results import Row
from benchmarks.operations import Multiplication

#: Most samples of a rate; the highest counts.
_SAMPLES = 5


class Peaks:
    """The peak rates of the instructions that the contenders of a case use, on all threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._used: dict[str, Multiplication] = {}  # label of a contender -> how it multiplies
        self._rates: dict[Multiplication, list[float]] = {}  # of one product -> op/s

    def add(self, contender: Contender) -> None:
        """Find out how the contender multiplies, and measure the peak of that."""
        with float32_products(contender.precision):
            used = contender.implementation.multiplication(self._device, contender.dtype)
        if used is None:
            return
        self._used[contender.label()] = used
        one = Multiplication(used.dtype, used.instruction_set)
        if one not in self._rates:
            self._rates[one] = [_measured(one)]

    def sample(self) -> None:
        """Measure every rate once more."""
        for one, rates in self._rates.items():
            if len(rates) < _SAMPLES:
                rates.append(_measured(one))

    def results(self) -> dict[str, float]:
        """Operations a second, by type and instruction set."""
        return {str(one): max(rates) for one, rates in self._rates.items()}

    def judge(self, row: Row) -> None:
        """Set the share of the peak of a measured row."""
        used = self._used.get(f"{row.implementation} {row.dtype}")
        if used is None or not row.samples or not row.executed_operations:
            return
        peak = max(self._rates[Multiplication(used.dtype, used.instruction_set)])
        row.multiplied_as = str(used)
        row.share_of_peak = used.products * row.executed_operations / row.median / peak


def _measured(one: Multiplication) -> float:
    return cac_ext.cpu_peak(getattr(torch, one.dtype), one.instruction_set)
