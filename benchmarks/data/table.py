"""The `data` results as a table for the terminal."""

from __future__ import annotations

from benchmarks.measure import units
from benchmarks.measure.results import Results
from cac_ext.train.runtime.text_tables import aligned_table

#: Labelled images, and pairs, of a step in the paper's settings.
STEP_IMAGES = 8
_TASKS = {
    "labelled": "image and mask",
    "strong": "a weak and two strong versions",
    "pair": "two crops",
}


def phase(task: str, workers: int) -> str:
    """A row's phase."""
    return f"{task}, {workers} {'worker' if workers == 1 else 'workers'}"


def data_table(results: Results) -> str:
    """A row for each picture size, task, number of workers and pipeline."""
    header = ["picture", "task", "pipeline", "images/s", "per image", "p20-p80", "passes"]
    header += ["ours is", "memory"]
    lines: list[list[str]] = []
    missing: dict[str, int] = {}  # reason -> rows
    for row in results.rows:
        names = [row.case, row.phase, row.implementation]
        if row.status != "ok":
            lines.append([*names, row.status.replace("_", " "), *["-"] * (len(header) - 4)])
            missing[row.detail] = missing.get(row.detail, 0) + 1
            continue
        ours = results.find(row.case, "ours", row.dtype, row.phase)
        faster = "-"
        if ours is not None and ours.samples and row is not ours:
            faster = f"{units.ratio(row.median / ours.median)} as fast"
        lines.append(
            [
                *names,
                f"{1 / row.median:.3g}",
                units.seconds(row.median),
                f"{units.seconds(row.p20)}-{units.seconds(row.p80)}",
                f"{len(row.samples)}",
                faster,
                units.size(row.extra_memory),
            ]
        )
    parts = [aligned_table(header, lines, left=3)]
    steps = _steps(results)
    if steps:
        parts.append("\n".join(steps))
    cases = [
        f"{name}: {sizes['width']} x {sizes['height']}, crops of {sizes['crop_size']}"
        for name, sizes in results.cases.items()
    ]
    tasks = [f"{name}: {what}" for name, what in _TASKS.items()]
    parts.append("\n".join([*cases, *tasks, "memory: peak of one labelled sample at scale 2"]))
    parts += [f"{count} rows: {reason}" for reason, count in missing.items()]
    return "\n\n".join([*parts, *filter(None, [results.warning()])])


def _steps(results: Results) -> list[str]:
    """How often our loaders deliver the two batches of a step."""
    found = []
    counts = sorted({row.phase.partition(", ")[2] for row in results.rows})
    for case in results.cases:
        for count in counts:
            rows = [
                results.find(case, "ours", "float32", f"{task}, {count}")
                for task in ("labelled", "pair")
            ]
            seconds = [STEP_IMAGES * row.median for row in rows if row is not None and row.samples]
            if len(seconds) == len(rows):
                labelled, pairs = map(units.seconds, seconds)
                found.append(
                    f"{case}: {STEP_IMAGES} labelled images every {labelled}, {STEP_IMAGES} pairs "
                    f"every {pairs} ({count} for each, a core for each worker)"
                )
    return found
