"""``python -m benchmarks readme README.md``: figures in a document, taken from result files.

A document marks the place of a table and the source of its figures:

    <!-- benchmark: benchmarks/results/.../loss.json case=voc -->
    <!-- end benchmark -->

``case=NAME`` is one case of a `loss` result; ``case=NAME:A,B`` shows the implementations A and B
alone. Other tables are ``scaling`` (its cases that differ in N alone), ``exponents`` (of time and
memory in each size), ``ranks=STEP.json`` (a calculation for several processes, with a `step` result
beside the file), ``step`` (a `step` result), ``largest`` (the sizes that fit into memory),
``parts`` (a `parts` result), ``data`` (a `data` result) and ``sets`` (a result of
`loss --instruction-sets`).

The command writes the table in between, with its footnotes; with ``--check`` it only reports
whether the document is up to date. Paths are relative to the document.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.documents.scaling import exponents_table, ranks_table
from benchmarks.errors import UsageError
from benchmarks.loss.scaling import series_in
from benchmarks.loss.sets import HEADER, set_lines
from benchmarks.loss.table import SHORT_DTYPE, speed_up
from benchmarks.measure import units
from benchmarks.measure.records import Machine
from benchmarks.measure.results import Results, Row
from benchmarks.step.parts_table import parts_lines, share_beside
from benchmarks.step.search import describe
from cac_ext.train.runtime.text_tables import markdown_table

_PLAIN = "scaling|exponents|step|largest|parts|data|sets"
_BLOCK = re.compile(
    rf"(?P<start><!-- benchmark: (?P<file>\S+) (?P<what>case=\S+|ranks=\S+|{_PLAIN}) -->\n)"
    r"(?P<body>.*?)(?P<end><!-- end benchmark -->)",
    re.DOTALL,
)


FEW = 3  # timed calls; a figure of fewer has a mark
FEW_SIGN, OTHER_TYPE_SIGN = "\\*", "\\*\\*"


def case_markdown(results: Results, case: str, implementations: Sequence[str] = ()) -> str:
    """One case of a `loss` result: time, ratios, shares of two rates, memory.

    With ``implementations`` only their rows.
    """
    if case not in results.cases:
        raise UsageError(f"the result has no case {case!r}; it has: {', '.join(results.cases)}")
    header = ["implementation", "type", "loss + gradient", "vs official", "vs tiled"]
    shown = [row for row in results.rows if row.case == case and row.phase == "both"]
    has_peak = any(row.share_of_peak is not None for row in shown)  # older files have none
    header += ["of matmul rate", *(["of peak"] if has_peak else []), "memory"]
    measured = {row.implementation: None for row in shown}
    if unknown := [name for name in implementations if name not in measured]:
        raise UsageError(
            f"the result has no implementation {', '.join(unknown)}; it has: {', '.join(measured)}"
        )
    shown = [row for row in shown if not implementations or row.implementation in implementations]
    lines = []
    for row in shown:
        cells = [row.implementation, SHORT_DTYPE.get(row.dtype, row.dtype)]
        if _measured(row):
            cells += [
                _time(row),
                _ratio(results, row, "official"),
                _ratio(results, row, "tiled"),
                units.percent(row.share_of_matrix_rate),
                *([units.percent(row.share_of_peak)] if has_peak else []),
                units.size(row.extra_memory),
            ]
        else:
            cells += [row.status.replace("_", " "), *["-"] * (len(header) - 3)]
        lines.append(cells)
    sizes = results.cases[case]
    caption = f"A = {sizes['A']:,}, N = {sizes['N']:,}, C = {sizes['C']}, both directions."
    return _block(results, header, lines, 2, caption, {"this case": shown})


def scaling_markdown(results: Results) -> str:
    """The cases of a `loss` result that differ in N alone: time and memory."""
    names = list(series_in(results, "N"))
    rows = [row for row in results.rows if row.phase == "both"]
    contenders = dict.fromkeys((row.implementation, row.dtype) for row in rows)
    header = ["N", *(f"{name} {SHORT_DTYPE.get(dtype, dtype)}" for name, dtype in contenders)]
    lines: list[list[str]] = []
    shown: dict[str, list[Row]] = {}
    for case in names:
        found = [results.find(case, *contender, "both") for contender in contenders]
        title = f"{results.cases[case]['N']:,}"
        lines.append([title, *map(_time_and_memory, found)])
        shown[title] = [row for row in found if row is not None]
    sizes = results.cases[names[0]]
    caption = f"A = {sizes['A']:,}, C = {sizes['C']}, both directions, loss and gradient."
    return _block(results, header, lines, 0, caption, shown)


def step_markdown(results: Results) -> str:
    """A `step` result: time and memory of a whole training step for each number of negatives."""
    losses = list(dict.fromkeys(row.implementation for row in results.rows))
    lines: list[list[str]] = []
    shown: dict[str, list[Row]] = {}
    for case, sizes in results.cases.items():
        found = [results.find(case, loss, "float32", "step") for loss in losses]
        title = f"{sizes['negatives']:,}"
        lines.append([title, *map(_time_and_memory, found)])
        shown[title] = [row for row in found if row is not None]
    sizes = next(iter(results.cases.values()))
    caption = (
        f"{_training(results)}, {sizes['batch']} labelled and {sizes['batch']} unlabelled images, "
        f"{sizes['anchors']:,} overlap pixels."
    )
    return _block(results, ["negatives", *losses], lines, 0, caption, shown)


def parts_markdown(results: Results) -> str:
    """A `parts` result: what a training step consists of."""
    caption = (
        f"`{results.settings['config']}` {' '.join(results.settings['overrides'])}; beside network "
        f"and losses: {100 * share_beside(results):.1f}% of a step."
    )
    return _block(results, ["part", "a step", "share"], parts_lines(results), 1, caption, {})


def largest_markdown(results: Results) -> str:
    """A `step` result: the most negatives and the largest batch within its memory budget."""
    searches = results.extra.get("largest")
    if not searches:
        raise UsageError("the result has no largest sizes; measure them with step --memory-budget")
    found = {
        (item["loss"], item["what"]): describe(
            item["largest"], item.get("too_large"), item["stopped_by"]
        )
        for item in searches
    }
    lines = [
        [loss, found.get((loss, "batch"), "-"), found.get((loss, "negatives"), "-")]
        for loss in dict.fromkeys(item["loss"] for item in searches)
    ]
    header = ["loss", "largest batch", "most negatives"]
    caption = (
        f"{_training(results)}, in {units.size(searches[0]['budget_bytes'])}; batches with "
        f"{max(results.settings['negatives']):,} negatives, negatives with a batch of "
        f"{results.settings['batch']}, labelled and unlabelled images each."
    )
    return _block(results, header, lines, 1, caption, {})


def data_markdown(results: Results) -> str:
    """A `data` result: images a second of every pipeline, and memory."""
    pipelines = list(dict.fromkeys(row.implementation for row in results.rows))
    lines: list[list[str]] = []
    shown: dict[str, list[Row]] = {}
    for case, sizes in results.cases.items():
        pixels = f"{sizes['width']} x {sizes['height']}"
        for phase in dict.fromkeys(row.phase for row in results.rows if row.case == case):
            found = [results.find(case, pipeline, "float32", phase) for pipeline in pipelines]
            lines.append([pixels, phase, *map(_rate_and_memory, found)])
            shown[f"{pixels}, {phase}"] = [row for row in found if row is not None]
    caption = "images a second; the peak memory of one labelled image at scale 2."
    return _block(results, ["pictures", "task", *pipelines], lines, 2, caption, shown)


def sets_markdown(results: Results) -> str:
    """A result of `loss --instruction-sets`: each set and type, and what bounds it."""
    caption = "loss and gradient of both directions."
    return _block(results, HEADER, set_lines(results), 4, caption, {"": results.rows})


def _training(results: Results) -> str:
    return f"`{results.settings['config']}` with {' '.join(results.settings['overrides'])}"


def _few(row: Row) -> bool:
    return _measured(row) and (len(row.samples) < FEW or not row.warmed_up)


def _time(row: Row) -> str:
    return units.seconds(row.median) + (FEW_SIGN if _few(row) else "")


def _time_and_memory(row: Row | None) -> str:
    if row is None or not _measured(row):
        return "-"
    return _time(row) + _memory(row)


def _rate_and_memory(row: Row | None) -> str:
    if row is None or not _measured(row):
        return "-"
    return f"{1 / row.median:.3g}{FEW_SIGN if _few(row) else ''}{_memory(row)}"


def _memory(row: Row) -> str:
    return "" if row.extra_memory is None else f", {units.size(row.extra_memory)}"


def _ratio(results: Results, row: Row, rival: str) -> str:
    """Times faster than the rival, with a mark if that has no figure in the same type."""
    text = units.ratio(speed_up(results, row, rival))
    same = results.find(row.case, rival, row.dtype, row.phase)
    measured = same is not None and _measured(same)
    return text if text == "-" or measured else text + OTHER_TYPE_SIGN


def _block(
    results: Results,
    header: list[str],
    lines: list[list[str]],
    left: int,
    caption: str,
    shown: dict[str, list[Row]],  # title of a line -> its rows
) -> str:
    """The table, the machine, the meaning of its signs and the reasons of empty cells."""
    machine = results.machine
    where = machine.get("gpu") or f"{machine['cpu']} ({_capability(machine)})"
    text = f"{where}, {machine['threads']} threads, torch {results.software['torch']}; {caption}"
    notes = []
    if any(_few(row) for rows in shown.values() for row in rows):
        notes.append(f"{FEW_SIGN} fewer than {FEW} timed calls, or none before them to warm up.")
    if any(cell.endswith(OTHER_TYPE_SIGN) for line in lines for cell in line):
        notes.append(f"{OTHER_TYPE_SIGN} against the other's fp32: it has no figure in this type.")
    notes += _empty_cells(shown)
    notes += results.warning().splitlines()
    parts = [markdown_table(header, lines, left), text, "\n".join(notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _measured(row: Row) -> bool:
    return row.status == "ok" and bool(row.samples)


def _capability(machine: Machine) -> str:
    """Torch's name of the instruction set, and the matrix unit, if there is one."""
    matrix_unit = [name for name in machine.get("instruction_sets", []) if "amx" in name]
    return " + ".join([machine["capability"], *matrix_unit])


def _empty_cells(shown: dict[str, list[Row]]) -> list[str]:
    """Why figures are missing: for each contender the reason in its first row without one."""
    empty: dict[str, list[tuple[str, Row]]] = {}
    for title, rows in shown.items():
        for row in rows:
            if not _measured(row):
                name = f"{row.implementation} {SHORT_DTYPE.get(row.dtype, row.dtype)}"
                empty.setdefault(name, []).append((title, row))
    return [
        f"No figure of {name} at {'; '.join(title for title, _ in found)}: "
        f"{found[0][1].status.replace('_', ' ')}, {found[0][1].detail or 'no reason given'}."
        for name, found in empty.items()
    ]


def updated(document: Path) -> str:
    """The text of the document with every table made anew.

    Raises:
        UsageError: the first line of a block is unknown, or the block has no end.
    """

    def replace(match: re.Match[str]) -> str:
        file = document.parent / match["file"]
        results = Results.load(file)
        if match["what"] == "scaling":
            body = scaling_markdown(results)
        elif match["what"] == "exponents":
            body = _block(results, *exponents_table(results), {})
        elif match["what"].startswith("ranks="):
            step = Results.load(file.parent / match["what"].removeprefix("ranks="))
            body = _block(results, *ranks_table(results, step), {})
        elif match["what"] == "parts":
            body = parts_markdown(results)
        elif match["what"] == "step":
            body = step_markdown(results)
        elif match["what"] == "largest":
            body = largest_markdown(results)
        elif match["what"] == "data":
            body = data_markdown(results)
        elif match["what"] == "sets":
            body = sets_markdown(results)
        else:
            case, _, names = match["what"].removeprefix("case=").partition(":")
            body = case_markdown(results, case, names.split(",") if names else ())
        return match["start"] + body + match["end"]

    text = document.read_text(encoding="utf-8")
    known = [match["start"] for match in _BLOCK.finditer(text)]
    for start in re.findall(r"^<!-- benchmark:.*\n?", text, re.MULTILINE):
        if start not in known:
            raise UsageError(
                f"{document}: {start.strip()!r} is not a block; it must begin with "
                f"'<!-- benchmark: FILE.json case=NAME[:A,B]|ranks=STEP.json|{_PLAIN} -->' and "
                "end with '<!-- end benchmark -->'"
            )
    return _BLOCK.sub(replace, text)


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
