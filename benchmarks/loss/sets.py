"""``python -m benchmarks loss --instruction-sets``: our CPU kernel with each instruction set.

Every set of this processor is tried in every input type that it multiplies by other instructions
than the sets below it. A row divides its time, loss and gradient, into three parts:

* multiply-adds: what the executed products take at their peak on registers (`cac_ext.cpu_peak`);
* operands: what the products take beyond that: loads, stores, padding at the edges of classes;
* beside products: what does not grow with the number of channels, above all the exponentials.

The last part is found by timing the same case with a quarter of the channels: the line through both
times meets zero channels there.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

import torch

from benchmarks.cases import Case, Inputs, make_inputs
from benchmarks.errors import UsageError
from benchmarks.implementations.contenders import Contender, float32_products
from benchmarks.implementations.ours import OursUpTo
from benchmarks.loss.table import SHORT_DTYPE, describe_run
from benchmarks.measure import units
from benchmarks.measure.peaks import Peaks
from benchmarks.measure.records import case_record
from benchmarks.measure.results import Kept, Results, Row
from benchmarks.measure.timing import time_training
from benchmarks.operations import Multiplication, Workload
from cac_ext import _C
from cac_ext.train.runtime.text_tables import aligned_table

TYPES_TRIED = ("float32", "float32-high", "bfloat16", "float16")
#: A case with this share of the channels shows what does not grow with them.
NARROW = 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class SetOptions:
    """What is measured, and how often."""

    sets: tuple[str, ...]  # names; empty: all of this processor
    seed: int
    repeats: int
    deadline: float  # on the clock of time.monotonic


@dataclass
class _Job:
    """One set and type on one case."""

    contender: Contender
    case: Case
    inputs: Inputs
    row: Row

    def run(self) -> None:
        with float32_products(self.contender.precision):
            seconds = time_training(self.contender.implementation.loss, self.inputs)["both"]
        self.row.samples.append(seconds)


def contenders_of(sets: tuple[str, ...]) -> list[Contender]:
    """Each set in the types that it multiplies by instructions of its own, or by other ones.

    Raises:
        UsageError: a set that this processor and build do not have.
    """
    there = _C.cpu_capabilities()
    if unknown := [name for name in sets if name not in there]:
        raise UsageError(
            f"no instruction set of this processor is called {unknown[0]!r}; there are: "
            f"{', '.join(there)}"
        )
    found = []
    known: set[tuple[str, Multiplication | None]] = set()
    for name in there:
        for dtype_name in TYPES_TRIED:
            contender = Contender(OursUpTo(name), dtype_name)
            with float32_products(contender.precision):
                used = contender.implementation.multiplication(CPU, contender.dtype)
            # "high" without other products than "highest" is the same call.
            features = str(contender.dtype)
            if (features, used) not in known and (not sets or name in sets):
                found.append(contender)
            known.add((features, used))
    return found


def measure_sets(
    results: Results, cases: list[Case], options: SetOptions, kept: Kept | None = None
) -> None:
    """Fill ``results`` with two rows for each case, set and type: all channels, and a quarter."""
    contenders = contenders_of(options.sets)
    for case in cases:
        peaks = Peaks(CPU)
        jobs: list[_Job] = []
        for one in (case, narrow(case)):
            inputs = make_inputs(one, options.seed)
            workload = Workload.of(inputs)
            results.cases[one.name] = case_record(one, workload)
            by_dtype = {c.dtype: inputs.to(CPU, c.dtype) for c in contenders}
            for contender in contenders:
                peaks.add(contender)
                row = Row(one.name, contender.name, contender.dtype_name, "both")
                row.executed_operations = contender.implementation.executed_operations(
                    workload, "both"
                )
                row.nominal_operations = workload.nominal_operations("both")
                jobs.append(_Job(contender, one, by_dtype[contender.dtype], row))
        results.rows += [job.row for job in jobs]
        _run_rounds(jobs, peaks, options)
        results.cases[case.name]["peak"] = peaks.results()
        for job in jobs:
            peaks.judge(job.row)
        if kept is not None:
            kept.save_so_far()


def narrow(case: Case) -> Case:
    """The same with a quarter of the channels."""
    C = max(case.C // NARROW, 1)
    return replace(case, name=f"{case.name}-c{C}", C=C)


def _run_rounds(jobs: list[_Job], peaks: Peaks, options: SetOptions) -> None:
    """Rounds in changing order until the time is over; the first call of each warms up."""
    order = random.Random(options.seed)
    for number in range(options.repeats + 1):
        for job in order.sample(jobs, len(jobs)):
            if time.monotonic() > options.deadline:
                break
            job.run()
            if number == 0:
                job.row.samples.clear()
        if number:
            peaks.sample()
    for job in jobs:
        if not job.row.samples:
            job.row.status, job.row.detail = "skipped", "the time budget is used up"


@dataclass(frozen=True)
class Parts:
    """Shares of the time of a row; together 1."""

    multiply_adds: float
    operands: float
    beside_products: float

    def largest(self) -> str:
        shares = {
            "multiply-adds": self.multiply_adds,
            "operands": self.operands,
            "beside products": self.beside_products,
        }
        return max(shares, key=lambda name: shares[name])


def parts_of(results: Results, row: Row) -> Parts | None:
    """What the time of a row is spent on; None if a figure is missing."""
    case = results.cases[row.case]
    others = [
        results.find(name, row.implementation, row.dtype, row.phase)
        for name, other in results.cases.items()
        if other["C"] < case["C"] and (other["A"], other["N"]) == (case["A"], case["N"])
    ]
    if row.share_of_peak is None or not others or others[0] is None or not others[0].samples:
        return None
    C, few = case["C"], results.cases[others[0].case]["C"]
    at_zero = row.median - (row.median - others[0].median) * C / (C - few)
    beside = min(max(at_zero / row.median, 0.0), 1.0 - row.share_of_peak)
    return Parts(row.share_of_peak, 1.0 - row.share_of_peak - beside, beside)


HEADER = ["case", "up to", "type", "multiplied as", "loss+grad", "runs", "op/s"]
HEADER += ["of peak", "operands", "beside products", "bound by"]

#: What the columns of `sets_table` mean.
COLUMNS = (
    "op/s: every product that the processor executes, padding left out; of peak: against"
    " multiply-adds on registers\nalone; operands: time of the products beyond that; beside"
    " products: time that does not grow with the channels"
)


def set_lines(results: Results) -> list[list[str]]:
    """The cells of every set and type, in the order of `HEADER`."""
    lines = []
    for row in results.rows:
        if any(row.case.startswith(f"{name}-c") for name in results.cases):
            continue  # the narrow case
        cells = [row.case, row.implementation, SHORT_DTYPE.get(row.dtype, row.dtype)]
        if not row.samples:
            lines.append([*cells, row.status, *["-"] * (len(HEADER) - 4)])
            continue
        parts = parts_of(results, row)
        products = _products(row)
        lines.append(
            [
                *cells,
                row.multiplied_as or "-",
                units.seconds(row.median),
                f"{len(row.samples)}",
                units.rate(products * (row.executed_operations or 0) / row.median),
                units.percent(row.share_of_peak),
                units.percent(parts.operands if parts else None),
                units.percent(parts.beside_products if parts else None),
                parts.largest() if parts else "-",
            ]
        )
    return lines


def _products(row: Row) -> int:
    """How many products make one product of features."""
    first = (row.multiplied_as or "").partition(" ")[0]
    return int(first) if first.isdigit() else 1


def sets_table(results: Results) -> str:
    """One line for each case, set and type."""
    parts = [describe_run(results), COLUMNS, aligned_table(HEADER, set_lines(results), left=4)]
    if results.warning():
        parts.append(results.warning())
    return "\n\n".join(parts)
