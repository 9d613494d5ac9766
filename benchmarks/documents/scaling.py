"""Tables of the fitted exponents, and of what follows for several processes: a calculation."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.errors import UsageError
from benchmarks.implementations.contenders import NO_LOSS
from benchmarks.loss.scaling import Ranks, exponents_of, fit, line_in_n, points_of, series_in
from benchmarks.loss.table import SHORT_DTYPE
from benchmarks.measure import units
from benchmarks.measure.results import Results

RANKS = (1, 2, 4, 8, 16, 32, 64)
#: Of the paper's VOC setting: a process has 4 unlabelled images, both views of 1,600 positions
#: become negatives, and the bank holds this step and the one before.
IMAGES, ROWS, STEPS = 4, 12_800, 2
#: Assumed, not measured: 10 Gbit/s, slower than the links between GPUs of one machine.
BANDWIDTH = 1.25e9
CONTENDER = "ours", "float32"


class Table(NamedTuple):
    """A table of a document: ``left`` columns are aligned to the left."""

    header: list[str]
    lines: list[list[str]]
    left: int
    caption: str


def exponents_table(results: Results) -> Table:
    """Exponent and standard error of time and memory in each size with three cases or more."""
    header, lines, ranges = exponents_of(results)
    if not lines:
        raise UsageError("the result has no three cases that differ in one of A, N, C, K alone")
    shown = [
        [name, SHORT_DTYPE.get(dtype, dtype), *(cell.replace("+-", "±") for cell in cells)]
        for name, dtype, *cells in lines
    ]
    return Table(header, shown, 2, f"least squares of logarithms, with standard errors; {ranges}.")


def ranks_of(loss: Results, step: Results) -> Ranks:
    """The constants, from a `loss` result with a series in N and a `step` result.

    Raises:
        UsageError: a result lacks a figure that is needed.
    """
    points = points_of(loss, "N", "time", *CONTENDER)
    floors = [row for row in step.rows if row.implementation == NO_LOSS and row.samples]
    if fit(points) is None or not floors:
        raise UsageError(
            f"the calculation needs three numbers of negatives of {' '.join(CONTENDER)} in the "
            f"result of loss, and a step with '{NO_LOSS}' in the result of step"
        )
    fixed, per_negative = line_in_n(points)
    case = next(iter(series_in(loss, "N").values()))
    batch = step.cases[floors[0].case]["batch"]
    return Ranks(
        images=IMAGES,
        anchors=case["A"],
        rows=ROWS,
        steps=STEPS,
        channels=case["C"],
        network=min(row.median for row in floors) * IMAGES / batch,
        fixed=fixed,
        per_negative=per_negative,
        bandwidth=BANDWIDTH,
    )


def ranks_table(loss: Results, step: Results) -> Table:
    """Negatives, gathered bytes, seconds and efficiency for 1 to 64 processes."""
    ranks = ranks_of(loss, step)
    header = ["processes", "negatives N", "gathered", "in chunks", "gather", "loss", "step"]
    header += ["loss and gather", "efficiency"]
    lines = []
    for count in RANKS:
        beside = ranks.loss(count) + ranks.gather(count)
        lines.append(
            [
                f"{count}",
                f"{ranks.negatives(count):,}",
                units.size(ranks.gathered_bytes(count)),
                units.size(ranks.gathered_bytes(count, in_chunks=True)),
                units.seconds(ranks.gather(count)) if count > 1 else "-",
                units.seconds(ranks.loss(count)),
                units.seconds(ranks.step(count)),
                units.percent(beside / ranks.step(count)),
                units.percent(ranks.efficiency(count)),
            ]
        )
    name, dtype = CONTENDER
    pair = ranks.per_negative / ranks.anchors
    caption = (
        "**a calculation, not a measurement**, for equal machines of this kind. Measured, on one: "
        f"{units.seconds(ranks.network)} for a step without the loss ({ranks.images} labelled and "
        f"{ranks.images} unlabelled images a process, `{step.settings['config']}` with "
        f"{' '.join(step.settings['overrides'])}); the loss ({name} {SHORT_DTYPE[dtype]}, "
        f"A = {ranks.anchors:,}) {units.seconds(ranks.fixed)}, and {1e12 * pair:.0f} ps for each "
        f"pair of an anchor and a negative. Given: {ranks.rows:,} new negatives a process and "
        f"step, {ranks.steps} steps in the bank, {ranks.row_bytes} bytes a negative. Assumed: "
        f"{ranks.bandwidth / 1e9:.2f} GB/s into each process, nothing at the same time. Beyond "
        f"{ranks.most():,} processes a process does less than half of the work of one alone."
    )
    return Table(header, lines, 0, caption)
