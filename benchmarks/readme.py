"""``python -m benchmarks readme README.md``: figures in a document, taken from result files.

A document says where a table stands and where its figures come from:

    <!-- benchmark: benchmarks/results/.../loss.json case=voc -->
    <!-- end benchmark -->

The command writes the table in between; with ``--check`` it only tells whether it is up to date.
Paths are relative to the document.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import table
from benchmarks.loss_table import SHORT_DTYPE, speed_up
from benchmarks.results import Results

_BLOCK = re.compile(
    r"(?P<start><!-- benchmark: (?P<file>\S+) case=(?P<case>\S+) -->\n)"
    r"(?P<body>.*?)(?P<end><!-- end benchmark -->)",
    re.DOTALL,
)


def markdown_table(results: Results, case: str) -> str:
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
    lines = [header, ["---", "---", *["---:"] * 5], *rows]
    sizes = results.cases[case]
    machine = results.machine
    caption = (
        f"\n{machine.get('gpu') or machine['cpu']} ({machine['capability']}),"
        f" {machine['threads']} threads, torch {results.software['torch']};"
        f" A = {sizes['A']:,}, N = {sizes['N']:,}, C = {sizes['C']}, both directions.\n"
    )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + caption


def updated(document: Path) -> str:
    """The document's text with every table made anew."""

    def replace(match: re.Match) -> str:
        results = Results.load(document.parent / match["file"])
        return match["start"] + markdown_table(results, match["case"]) + match["end"]

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
