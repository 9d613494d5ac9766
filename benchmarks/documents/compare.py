"""``python -m benchmarks compare A.json B.json``: what changed beyond noise."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.arguments import positive_float
from benchmarks.errors import UsageError
from benchmarks.measure import units
from benchmarks.measure.results import Results, Row
from cac_ext.train.runtime.text_tables import aligned_table

#: With fewer calls than this on either side the spread is unknown: only a gross change counts.
ENOUGH_SAMPLES = 3
GROSS = 0.5
#: Memory has little noise, but allocators round: both bounds must be passed.
MEMORY_SHARE = 0.10
MEMORY_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Change:
    """One row of both files.

    ``ratio`` is B / A of the medians, between ``low`` and ``high`` by the 20-80% bands; nan if a
    side was not timed.
    """

    key: tuple[str, str, str, str]
    before: Row
    after: Row
    threshold: float

    @property
    def timed(self) -> bool:
        return bool(self.before.samples and self.after.samples)

    @property
    def ratio(self) -> float:
        return self.after.median / self.before.median

    @property
    def low(self) -> float:
        return self.after.p20 / self.before.p80

    @property
    def high(self) -> float:
        return self.after.p80 / self.before.p20

    @property
    def memory_ratio(self) -> float:
        """Nan if it is unknown."""
        if not self.before.extra_memory or self.after.extra_memory is None:
            return math.nan
        return self.after.extra_memory / self.before.extra_memory

    def verdict(self) -> str:
        """Empty without a change beyond noise; that of a regression has an exclamation mark."""
        if self.before.status == "ok" != self.after.status and self.after.status != "skipped":
            return f"{self.after.status.replace('_', ' ')}!"
        found = []
        if self.timed:
            few = min(len(self.before.samples), len(self.after.samples)) < ENOUGH_SAMPLES
            margin = max(self.threshold, GROSS) if few else self.threshold
            if self.low > 1 and self.ratio > 1 + margin:
                found.append("slower!")
            elif self.high < 1 and self.ratio < 1 / (1 + margin):
                found.append("faster")
        difference = (self.after.extra_memory or 0) - (self.before.extra_memory or 0)
        if self.memory_ratio > 1 + MEMORY_SHARE and difference > MEMORY_BYTES:
            found.append("more memory!")
        elif self.memory_ratio < 1 / (1 + MEMORY_SHARE) and -difference > MEMORY_BYTES:
            found.append("less memory")
        return ", ".join(found)

    @property
    def regressed(self) -> bool:
        return "!" in self.verdict()


#: Two runs are the same experiment if these agree: settings of the run, and sizes of each case.
SETTINGS = {"loss": ("seed",), "step": ("seed", "config", "overrides", "batch"), "data": ("seed",)}
SIZES = {
    "loss": ("A", "N", "C", "K", "active_share", "background_share"),
    "step": ("negatives", "anchors", "batch"),
    "data": ("width", "height", "crop_size", "base_size", "batch", "scale"),
}


def check_kinds(before: Results, after: Results, names: tuple[str, str] = ("A", "B")) -> None:
    """Raise a `UsageError` unless both are of one kind that has rows to compare."""
    for results, name in zip((before, after), names, strict=True):
        if results.kind not in SETTINGS:
            raise UsageError(
                f"{name} is a {results.kind!r} result, with curves instead of rows to compare; "
                f"to see it: python -m benchmarks report {name}"
            )
    if before.kind != after.kind:
        raise UsageError(
            f"{names[0]} is a {before.kind!r} result and {names[1]} a {after.kind!r} result; "
            "give two of one kind; python -m benchmarks report takes any"
        )


def different_experiment(before: Results, after: Results, case: str) -> str:
    """How the two runs of a case differ as experiments; empty if they do not."""
    found: list[tuple[str, object, object]] = [
        (name, before.settings.get(name), after.settings.get(name))
        for name in SETTINGS[before.kind]
    ]
    one_case, other_case = before.cases.get(case, {}), after.cases.get(case, {})
    found += [(name, one_case.get(name), other_case.get(name)) for name in SIZES[before.kind]]
    # A case that could not run has no sizes in its file.
    found = [item for item in found if item[1] != item[2] and None not in item[1:]]
    return ", ".join(f"{name} is {one} in A and {other} in B" for name, one, other in found)


def compare(before: Results, after: Results, threshold: float = 0.05) -> list[Change]:
    """Every row of the same experiment in both, in the order of the first."""
    check_kinds(before, after)
    later = {row.key: row for row in after.rows}
    return [
        Change(row.key, row, later[row.key], threshold)
        for row in before.rows
        if row.key in later and not different_experiment(before, after, row.case)
    ]


def _refused(before: Results, after: Results) -> list[str]:
    """A sentence for each reason why rows of both files are not compared."""
    shared = {row.key for row in before.rows} & {row.key for row in after.rows}
    cases: dict[str, dict[str, int]] = {}  # reason -> case -> rows
    for case, *_ in sorted(shared):
        reason = different_experiment(before, after, case)
        if reason:
            counts = cases.setdefault(reason, {})
            counts[case] = counts.get(case, 0) + 1
    return [
        f"{sum(counts.values())} rows of {', '.join(counts)} are not compared, "
        f"other experiments: {reason}"
        for reason, counts in cases.items()
    ]


def _differences(before: Results, after: Results) -> list[str]:
    """Everything that makes the two runs hard to compare."""
    found = [
        f"{name} is incomplete: its run ended early"
        for name, results in (("A", before), ("B", after))
        if not results.complete
    ]
    names = ["device", "gpu", "cpu", "capability", "threads"]
    if "environment" in before.machine and "environment" in after.machine:  # older files lack it
        names += ["environment", "niceness", "scheduling_policy"]
    for name in names:
        values = before.machine.get(name), after.machine.get(name)
        if values[0] != values[1]:
            found.append(f"{name} differs: {values[0]} and {values[1]}")
    if before.software.get("torch") != after.software.get("torch"):
        found.append(
            f"torch differs: {before.software.get('torch')} and {after.software.get('torch')}"
        )
    changes: dict[str, list[float]] = {}  # of the matrix-product rates, case by case
    for case in before.cases.keys() & after.cases.keys():
        rates = [result.cases[case].get("matrix_rate", {}) for result in (before, after)]
        for dtype in rates[0].keys() & rates[1].keys():
            changes.setdefault(dtype, []).append(rates[1][dtype] / rates[0][dtype])
    for dtype, factors in sorted(changes.items()):
        change = median(factors)
        if abs(change - 1) > 0.1:
            found.append(
                f"the machine itself ran {dtype} matrix products {change:.2f} times as fast in B"
            )
    return found


def comparison_table(changes: list[Change]) -> str:
    header = ["case", "implementation", "type", "phase", "A", "B", "B/A", "spread", "memory B/A"]
    lines = []
    for change in changes:
        timed = change.timed
        lines.append(
            [
                *change.key,
                units.seconds(change.before.median) if timed else change.before.status,
                units.seconds(change.after.median) if timed else change.after.status,
                f"{change.ratio:.3f}" if timed else "-",
                f"{change.low:.2f}-{change.high:.2f}" if timed else "-",
                "-" if math.isnan(change.memory_ratio) else f"{change.memory_ratio:.2f}",
                change.verdict(),
            ]
        )
    return aligned_table([*header, "verdict"], lines, left=4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compares two results row by row. A row counts as slower if its 20-80% bands do not "
        "overlap and the medians differ by more than the threshold. The exit code is 1 if "
        "anything is slower, takes more memory or no longer runs. Rows with other sizes, seeds or "
        "training settings are other experiments and are not compared."
    )
    parser.add_argument("before", metavar="A.json")
    parser.add_argument("after", metavar="B.json")
    parser.add_argument(
        "--threshold",
        type=positive_float,
        default=0.05,
        help="smallest change of the median that counts, as a share (default 0.05)",
    )


def run(arguments: argparse.Namespace) -> int:
    before, after = Results.load(Path(arguments.before)), Results.load(Path(arguments.after))
    check_kinds(before, after, (arguments.before, arguments.after))
    changes = compare(before, after, arguments.threshold)
    refused = _refused(before, after)
    if not changes:
        reasons = "; ".join(refused) or "they have no row in common"
        raise UsageError(f"{arguments.before} (A) and {arguments.after} (B): {reasons}")
    print(comparison_table(changes))
    for note in (*_differences(before, after), *refused):
        print(f"note: {note}")
    only = {row.key for row in before.rows} ^ {row.key for row in after.rows}
    if only:
        print(f"note: {len(only)} rows are in one of the files only")
    regressions = [change for change in changes if change.regressed]
    print(f"\n{len(regressions)} of {len(changes)} rows regressed")
    return 1 if regressions else 0
