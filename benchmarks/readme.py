"""``python -m benchmarks readme README.md``: figures in a document, taken from result files.

A document says where a table stands and where its figures come from:

    <!-- benchmark: benchmarks/results/.../loss.json case=voc -->
    <!-- end benchmark -->

Instead of ``case=NAME`` (one case of a `loss` result) it may say ``scaling`` (its cases that differ
in N alone) or ``step`` (a `step` result).

The command writes the table in between; with ``--check`` it only tells whether it is up to date.
Paths are relative to the document.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import table
from benchmarks.loss_table import SHORT_DTYPE, speed_up
from benchmarks.plots import series_in_n
from benchmarks.results import Results, Row

_BLOCK = re.compile(
    r"(?P<start><!-- benchmark: (?P<file>\S+) (?P<what>case=\S+|scaling|step) -->\n)"
    r"(?P<body>.*?)(?P<end><!-- end benchmark -->)",
    re.DOTALL,
)


def case_table(results: Results, case: str) -> str:
    """One case of a `loss` result: time, ratios, share of the matrix-product rate, memory."""
    if case not in results.cases:
        raise ValueError(f"the result has no case {case!r}; it has: {', '.join(results.cases)}")
    header = ["implementation", "type", "loss + gradient", "vs official", "vs tiled"]
    header += ["of matmul rate", "memory"]
    rows = []
    for row in results.rows:
        if row.case != case or row.phase != "both":
            continue
        cells = [row.implementation, SHORT_DTYPE.get(row.dtype, row.dtype)]
        if row.status == "ok":
            cells += [
                table.seconds(row.median),
                table.ratio(speed_up(results, row, "official")),
                table.ratio(speed_up(results, row, "tiled")),
                table.percent(row.share_of_matrix_rate),
                table.size(row.extra_memory),
            ]
        else:
            cells += [row.status.replace("_", " "), *["-"] * 4]
        rows.append(cells)
    sizes = results.cases[case]
    caption = f"A = {sizes['A']:,}, N = {sizes['N']:,}, C = {sizes['C']}, both directions."
    return _render(header, rows, left=2) + _machine(results, caption)


def scaling_table(results: Results) -> str:
    """A `loss` result's cases that differ in N alone: time and memory of each implementation."""
    names = sorted(series_in_n(results), key=lambda name: results.cases[name]["N"])
    rows = [row for row in results.rows if row.phase == "both"]
    contenders = dict.fromkeys((row.implementation, row.dtype) for row in rows)
    header = ["N", *(f"{name} {SHORT_DTYPE.get(dtype, dtype)}" for name, dtype in contenders)]
    lines = []
    for case in names:
        found = [results.find(case, *contender, "both") for contender in contenders]
        lines.append([f"{results.cases[case]['N']:,}", *map(_time_and_memory, found)])
    sizes = results.cases[names[0]]
    caption = f"A = {sizes['A']:,}, C = {sizes['C']}, both directions, loss and gradient."
    return _render(header, lines, left=0) + _machine(results, caption)


def step_table(results: Results) -> str:
    """A `step` result: time and memory of a whole training step for each number of negatives."""
    losses = list(dict.fromkeys(row.implementation for row in results.rows))
    lines = [
        [
            f"{sizes['negatives']:,}",
            *(_time_and_memory(results.find(case, loss, "float32", "step")) for loss in losses),
        ]
        for case, sizes in results.cases.items()
    ]
    sizes = next(iter(results.cases.values()))
    caption = (
        f"`{results.settings['config']}` with {' '.join(results.settings['overrides'])}, "
        f"{sizes['batch']} labelled and {sizes['batch']} unlabelled images, "
        f"{sizes['anchors']:,} overlap pixels."
    )
    return _render(["negatives", *losses], lines, left=0) + _machine(results, caption)


def _time_and_memory(row: Row | None) -> str:
    if row is None or row.status != "ok" or not row.samples:
        return "-"
    memory = "" if row.extra_memory is None else f", {table.size(row.extra_memory)}"
    return table.seconds(row.median) + memory


def _render(header: list[str], rows: list[list[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, rule, *rows])


def _machine(results: Results, caption: str) -> str:
    machine = results.machine
    return (
        f"\n{machine.get('gpu') or machine['cpu']} ({machine['capability']}),"
        f" {machine['threads']} threads, torch {results.software['torch']}; {caption}\n"
    )


def updated(document: Path) -> str:
    """The document's text with every table made anew."""

    def replace(match: re.Match) -> str:
        results = Results.load(document.parent / match["file"])
        if match["what"] == "scaling":
            body = scaling_table(results)
        elif match["what"] == "step":
            body = step_table(results)
        else:
            body = case_table(results, match["what"].removeprefix("case="))
        return match["start"] + body + match["end"]

    return _BLOCK.sub(replace, document.read_text(encoding="utf-8"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("document", metavar="README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if stale")


def run(arguments: argparse.Namespace) -> int:
    document = Path(arguments.document)
    text = updated(document)
    if text == document.read_text(encoding="utf-8"):
        print(f"{document} is up to date")
        return 0
    if arguments.check:
        print(f"{document} differs from its result files: run python -m benchmarks readme on it")
        return 1
    document.write_text(text, encoding="utf-8")
    print(f"written: {document}")
    return 0
