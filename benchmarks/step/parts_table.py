"""The `parts` results as a table for the terminal."""

from __future__ import annotations

from benchmarks.measure import units
from benchmarks.measure.results import Results
from cac_ext.train.runtime.text_tables import aligned_table

#: As `benchmarks.step.parts` names them; that module needs the trainer's packages.
LOADING, BESIDE = "loading of images", ("sorting of negatives", "the rest")
_SHOWN = 8  # operations of the rest


def share_beside(results: Results) -> float:
    """Share of a step that is neither network nor loss nor optimizer, without the loading."""
    seconds = {row.implementation: row.median for row in results.rows}
    step = sum(time for part, time in seconds.items() if part != LOADING)
    return sum(seconds[part] for part in BESIDE) / step


def parts_lines(results: Results) -> list[list[str]]:
    """Part, seconds a step, share of the step without the loading of images."""
    step = sum(row.median for row in results.rows if row.implementation != LOADING)
    return [
        [
            row.implementation,
            units.seconds(row.median),
            "-" if row.implementation == LOADING else f"{100 * row.median / step:.1f}%",
        ]
        for row in results.rows
    ]


def parts_table(results: Results) -> str:
    """The parts, their share beside network and losses, and what the rest consists of."""
    if not results.rows:
        return "nothing was measured"
    parts = [aligned_table(["part", "a step", "share"], parts_lines(results), left=1)]
    parts.append(f"beside network and losses: {100 * share_beside(results):.1f}% of the step")
    rest = list(results.extra.get("rest", {}).items())[:_SHOWN]
    lines = [[name, units.seconds(seconds)] for name, seconds in rest]
    parts.append("the rest, its largest:\n" + aligned_table(["", "a step"], lines, left=1))
    return "\n\n".join([*parts, *filter(None, [results.warning()])])
