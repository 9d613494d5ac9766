"""The `step` results as a table for the terminal."""

from __future__ import annotations

from benchmarks import table
from benchmarks.contenders import NO_LOSS
from benchmarks.results import Results
from benchmarks.step_search import RESOLUTION, describe

#: Section 4.3 and Table 4 of the paper, on the authors' GPUs: facts about the paper, not measured.
PAPER = {
    "negatives": [500, 19_200],
    "seconds_per_iteration": [0.96, 1.18],
    "memory_growth": "about 800M on each GPU",
}


def step_table(results: Results) -> str:
    """Rows of Table 4, then the sizes that fit, then the paper's own figures."""
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
        slower = more = None
        if floor is not None and floor.samples and row is not floor:
            slower = row.median / floor.median - 1
            more = row.extra_memory - floor.extra_memory
        lines.append(
            [
                negatives,
                row.implementation,
                table.seconds(row.median),
                f"{table.seconds(row.p20)}-{table.seconds(row.p80)}",
                f"{len(row.samples)}{'' if row.warmed_up else '*'}",
                "-" if slower is None else f"{100 * slower:+.1f}%",
                table.size(row.extra_memory),
                "-" if more is None else table.size(more),
            ]
        )
    parts = [table.render(header, lines, left=2)]
    growth = _growth(results)
    if growth:
        parts.append(growth)
    largest = results.extra.get("largest", [])
    if largest:
        parts.append(_largest(largest))
    if any(not row.warmed_up for row in results.rows):
        notes.append("* slow steps are timed without one before them")
    return "\n\n".join([*parts, *notes, *filter(None, [results.warning()])])


def _growth(results: Results) -> str:
    """From the fewest negatives to 19.2k: measured, beside what the paper says of itself."""
    low, high = (f"negatives-{n}" for n in PAPER["negatives"])
    lines = []
    for loss in dict.fromkeys(row.implementation for row in results.rows):
        rows = [results.find(case, loss, "float32", "step") for case in (low, high)]
        if all(row is not None and row.samples for row in rows):
            seconds = rows[1].median / rows[0].median - 1
            memory = (rows[1].extra_memory - rows[0].extra_memory) / 1e6
            lines.append([f"measured here, {loss}", f"{memory:+.0f} MB", f"{100 * seconds:+.1f}%"])
    if not lines:
        return ""
    first, second = PAPER["seconds_per_iteration"]
    paper = f"{first} s to {second} s ({100 * (second / first - 1):+.0f}%)"
    lines.append(["the paper's own, on its GPUs", PAPER["memory_growth"], paper])
    return "from 500 to 19,200 negatives:\n" + table.render(["", "memory", "time"], lines)


def _largest(searches: list[dict]) -> str:
    rows = [
        [
            item["what"],
            item["loss"],
            describe(item["largest"], item.get("too_large"), item["stopped_by"]),
        ]
        for item in searches
    ]
    seconds = searches[0].get("seconds")
    limit = "" if seconds is None else f"; each search had {seconds:.0f} s or what others left"
    return (
        f"largest that fits into {table.size(searches[0]['budget_bytes'])}, "
        f"to {100 * RESOLUTION:.0f}%{limit}:\n"
        + table.render(["what", "loss", "largest"], rows, left=2)
    )
