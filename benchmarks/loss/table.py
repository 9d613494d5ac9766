"""The `loss` results as a table for the terminal."""

from __future__ import annotations

import math

from benchmarks.loss.scaling import exponents_of
from benchmarks.measure import units
from benchmarks.measure.records import CaseRecord
from benchmarks.measure.results import Results, Row
from cac_ext.train.runtime.text_tables import aligned_table

SHORT_DTYPE = {
    "float32": "fp32",
    "float32-high": "fp32-high",
    "float32-medium": "fp32-medium",
    "bfloat16": "bf16",
    "float16": "fp16",
}


#: What the columns of `loss_table` mean.
COLUMNS = (
    "loss+grad: both directions, median; vs official / tiled: times faster, same type where"
    " measured, else fp32;\nop/s: operations really executed; of matmul: against torch's matrix"
    " product of that type in the same case;\nof peak: every product that"
    " the processor executes, against multiply-adds on registers alone;\nof bandwidth: inputs and"
    " outputs moved once; memory: peak beyond the inputs, gradients included;\nforward: without"
    " gradient"
)


def speed_up(results: Results, row: Row, rival: str) -> float | None:
    """Times by which ``row`` is faster than ``rival``: in the same type, else in float32."""
    for dtype in (row.dtype, "float32"):
        other = results.find(row.case, rival, dtype, row.phase)
        if other is not None and other.samples:
            return other.median / row.median
    return None


def loss_table(results: Results) -> str:
    """One line for each case and contender; below, the reasons of failures."""
    header = [
        "case",
        "implementation",
        "type",
        "loss+grad",
        "p20-p80",
        "runs",
        "vs official",
        "vs tiled",
        "op/s",
        "of matmul",
        "of peak",
        "of bandwidth",
        "memory",
        "forward",
        "backward",
    ]
    lines, notes = [], []
    for row in results.rows:
        if row.phase != "both":
            continue
        cells = [row.case, row.implementation, SHORT_DTYPE.get(row.dtype, row.dtype)]
        if row.status != "ok":
            notes.append(f"{row.case}, {row.implementation} {row.dtype}: {row.detail}")
            lines.append([*cells, row.status.replace("_", " "), *["-"] * (len(header) - 4)])
            continue
        executed_rate = (row.executed_operations or math.nan) / row.median
        phases = [
            results.find(row.case, row.implementation, row.dtype, phase)
            for phase in ("forward", "backward")
        ]
        lines.append(
            [
                *cells,
                units.seconds(row.median),
                f"{units.seconds(row.p20)}-{units.seconds(row.p80)}",
                f"{len(row.samples)}{'' if row.warmed_up else '*'}",
                units.ratio(speed_up(results, row, "official")),
                units.ratio(speed_up(results, row, "tiled")),
                units.rate(executed_rate),
                units.percent(row.share_of_matrix_rate),
                units.percent(row.share_of_peak),
                units.percent(row.share_of_bandwidth),
                units.size(row.extra_memory),
                *(units.seconds(phase.median if phase else None) for phase in phases),
            ]
        )
    notes += _executed(results) + multiplied(results)
    parts = [describe_run(results), COLUMNS, aligned_table(header, lines, left=3)]
    if any(not row.warmed_up for row in results.rows):
        notes.append("* slow calls are timed without a warm-up call")
    if results.warning():
        notes.append(results.warning())
    laws, law_lines, ranges = exponents_of(results)
    if law_lines:
        parts.append(f"fitted exponents; {ranges}:\n" + aligned_table(laws, law_lines, left=2))
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _executed(results: Results) -> list[str]:
    """Share of the operations of the equations that each implementation executes."""
    shares: dict[str, list[float]] = {}
    for row in results.rows:
        if row.phase == "both" and row.samples and row.nominal_operations:
            share = (row.executed_operations or 0) / row.nominal_operations
            shares.setdefault(row.implementation, []).append(share)
    ranges = []
    for name, found in shares.items():
        low, high = units.percent(min(found)), units.percent(max(found))
        ranges.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    text = f"executed, of 4C operations for every pair in each direction: {', '.join(ranges)}"
    return [text] if ranges else []


def multiplied(results: Results) -> list[str]:
    """How each row that has a share of the peak multiplies."""
    ways: dict[str, list[str]] = {}
    for row in results.rows:
        if row.multiplied_as is not None:
            name = f"{row.implementation} {SHORT_DTYPE.get(row.dtype, row.dtype)}"
            names = ways.setdefault(row.multiplied_as, [])
            names += [name] if name not in names else []
    return [f"multiplied as {way}: {', '.join(names)}" for way, names in ways.items()]


def describe_run(results: Results) -> str:
    """Machine, versions, sizes and limits."""
    machine, software = results.machine, results.software
    lines = [
        f"{machine.get('gpu') or machine['cpu']}, {machine['capability']}"
        f" ({' '.join(machine['instruction_sets'])}), {machine['threads']} threads,"
        f" torch {software['torch']}"
    ]
    for name, case in results.cases.items():
        line = f"{name}: A={case['A']:,} N={case['N']:,} C={case['C']} K={case['K']}"
        if "workload" in case:  # not of a case that was skipped
            line += (
                f", {case['workload']['active_anchors']:,} active anchors in both directions,"
                f" {_differing(case):.0%} of their negatives of another class"
            )
        lines.append(line)
        smaller = case.get("smaller_products", [])
        rates = [
            f"{units.rate(rate)}op/s {SHORT_DTYPE.get(dtype, dtype)}"
            + (" (of smaller products than usual, for lack of time)" if dtype in smaller else "")
            for dtype, rate in case.get("matrix_rate", {}).items()
        ]
        if rates:
            lines.append(f"    matrix product: {', '.join(rates)}")
        if peaks := case.get("peak"):
            shown = (f"{units.rate(rate)}op/s {way}" for way, rate in peaks.items())
            lines.append(f"    peak: {', '.join(shown)}")
    if "memory_bandwidth" in results.limits:
        lines.append(f"memory bandwidth: {results.limits['memory_bandwidth'] / 1e9:.0f} GB/s")
    lines += _checked(results)
    return "\n".join(lines)


def _checked(results: Results) -> list[str]:
    """The sizes at which the implementations were compared with the oracle."""
    sizes = dict.fromkeys(
        f"C={check['C']} K={check['K']} (A={check['A']:,} N={check['N']:,})"
        for check in results.checks
        if "C" in check
    )
    text = f"loss and gradient checked against the float64 reference at {', '.join(sizes)}"
    return [text] if sizes else []


def _differing(case: CaseRecord) -> float:
    """Share of the pairs of active anchors and negatives whose classes differ."""
    workload = case["workload"]
    pairs = workload["active_anchors"] * workload["negatives"]
    return workload["differing_pairs"] / pairs if pairs else 0.0
