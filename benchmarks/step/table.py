"""The `step` results as a table for the terminal."""

from __future__ import annotations

from benchmarks.implementations.contenders import NO_LOSS
from benchmarks.measure import units
from benchmarks.measure.records import Largest, PaperStep
from benchmarks.measure.results import Results, Row
from benchmarks.step.search import RESOLUTION, describe
from cac_ext.train.runtime.text_tables import aligned_table

#: Section 4.3 and Table 4 of the paper: figures of the authors' GPUs, not measured here.
PAPER: PaperStep = {
    "negatives": [500, 19_200],
    "seconds_per_iteration": [0.96, 1.18],
    "memory_growth": "about 800M on each GPU",
}


def step_table(results: Results) -> str:
    """Rows of Table 4, their growth beside the paper's, then the sizes that fit."""
    header = ["negatives", "loss", "step", "p20-p80", "steps", "vs no loss", "memory", "more"]
    lines, notes = [], []
    for row in results.rows:
        negatives = f"{results.cases.get(row.case, {}).get('negatives', row.case)}"
        if row.status != "ok":
            status = row.status.replace("_", " ")
            lines.append([negatives, row.implementation, status, *["-"] * (len(header) - 3)])
            notes.append(f"{row.case}, {row.implementation}: {row.detail}")
            continue
        floor = results.find(row.case, NO_LOSS, row.dtype, row.phase)
        slower = more = "-"
        if floor is not None and floor.samples and row is not floor:
            slower = f"{100 * (row.median / floor.median - 1):+.1f}%"
            more = units.size(_more_memory(row, floor))
        lines.append(
            [
                negatives,
                row.implementation,
                units.seconds(row.median),
                f"{units.seconds(row.p20)}-{units.seconds(row.p80)}",
                f"{len(row.samples)}{'' if row.warmed_up else '*'}",
                slower,
                units.size(row.extra_memory),
                more,
            ]
        )
    parts = [aligned_table(header, lines, left=2)]
    growth = _growth(results)
    if growth:
        parts.append(growth)
    largest = results.extra.get("largest", [])
    if largest:
        parts.append(_largest(largest))
    if any(not row.warmed_up for row in results.rows):
        notes.append("* slow steps are timed without a warm-up step")
    return "\n\n".join([*parts, *notes, *filter(None, [results.warning()])])


def _more_memory(row: Row, floor: Row) -> int | None:
    """Bytes beyond those of ``floor``; None if either is unknown."""
    if row.extra_memory is None or floor.extra_memory is None:
        return None
    return row.extra_memory - floor.extra_memory


def _growth(results: Results) -> str:
    """From 500 negatives to 19,200: measured, beside the paper's own figures."""
    low, high = (f"negatives-{n}" for n in PAPER["negatives"])
    lines = []
    for loss in dict.fromkeys(row.implementation for row in results.rows):
        few, many = (results.find(case, loss, "float32", "step") for case in (low, high))
        if few is not None and many is not None and few.samples and many.samples:
            seconds = f"{100 * (many.median / few.median - 1):+.1f}%"
            more = _more_memory(many, few)
            memory = "-" if more is None else f"{more / 1e6:+.0f} MB"
            lines.append([f"measured here, {loss}", memory, seconds])
    if not lines:
        return ""
    first, second = PAPER["seconds_per_iteration"]
    paper = f"{first} s to {second} s ({100 * (second / first - 1):+.0f}%)"
    lines.append(["the paper's own, on its GPUs", PAPER["memory_growth"], paper])
    return "from 500 to 19,200 negatives:\n" + aligned_table(["", "memory", "time"], lines)


def _largest(searches: list[Largest]) -> str:
    rows = [
        [
            item["what"],
            item["loss"],
            describe(item["largest"], item.get("too_large"), item["stopped_by"]),
        ]
        for item in searches
    ]
    seconds = searches[0].get("seconds")
    limit = "" if seconds is None else f"; each search had {seconds:.0f} s or more"
    return (
        f"largest that fits into {units.size(searches[0]['budget_bytes'])}, "
        f"to {100 * RESOLUTION:.0f}%{limit}:\n"
        + aligned_table(["what", "loss", "largest"], rows, left=2)
    )
