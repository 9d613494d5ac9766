"""The rows of a table of the paper, trained; ours beside the paper's own figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from cac_ext.train.config import Config, load
from cac_ext.train.errors import ConfigError
from cac_ext.train.evaluate import absence_note, absent_names
from cac_ext.train.experiments.prepare import prepare
from cac_ext.train.experiments.tables import SOURCE, Row, Table
from cac_ext.train.loop import train
from cac_ext.train.methods import check_method
from cac_ext.train.preflight import require_labels_of_runs
from cac_ext.train.pseudo_labels.folders import PseudoLabelFolders
from cac_ext.train.runs.log import finite
from cac_ext.train.runtime.distributed import current
from cac_ext.train.runtime.whole_files import write_text_whole


def plan_rows(
    table: Table,
    rows: Sequence[Row],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    config: str | None = None,
) -> dict[tuple[str, int], Config]:
    """The configuration of each (row, seed), all checked before anything is trained.

    Args:
        table: where the rows are from.
        rows: rows without overrides of their own, the paper's alone, are left out.
        seeds: of the runs.
        overrides: the user's; they come last and win.
        config: in place of the table's own.

    Raises:
        ConfigError: nothing is left to train, or a configuration cannot be used.
    """
    trained = [row for row in rows if row.overrides is not None]
    if not trained or not seeds:
        raise ConfigError(
            "there is nothing to train: these rows are other authors' methods, of which only the "
            "paper's figures are here"
        )
    return {
        (row.name, seed): load_row(table, row, [*overrides, f"seed={seed}"], config)
        for seed in seeds
        for row in trained
    }


def load_row(
    table: Table, row: Row, overrides: Sequence[str] = (), config: str | None = None
) -> Config:
    """A row's whole configuration."""
    if row.overrides is None:
        raise ConfigError(f"{row.name} of {table.name} is the paper's figure alone")
    return load(config or table.config, [*table.overrides, *row.overrides, *overrides])


def ablate(
    table: Table,
    runs: dict[tuple[str, int], Config],
    folder: Path,
    *,
    progress: bool = True,
) -> str:
    """Trains every run that is not finished yet; returns the table.

    ``folder`` receives a run folder ``ROW-seedN`` each, ``results.json`` and ``table.md``, both
    brought up to date after each run. Rows trained into the same folder before stay in them.
    """
    results = folder / "results.json"
    records = _read_records(results)
    for config in runs.values():
        check_method(config)  # before the first of them takes hours
    folders_of_runs = {folder / f"{row}-seed{seed}": runs[row, seed] for row, seed in runs}
    require_labels_of_runs(folders_of_runs, progress=progress)
    for number, ((row, seed), config) in enumerate(runs.items(), 1):
        label = f"[{number}/{len(runs)}] {row} seed {seed}"
        folders = PseudoLabelFolders.shared(folder, seed)
        ready = prepare(config, folders, label=label, progress=progress)
        result = train(
            ready, folder / f"{row}-seed{seed}", label=label, resume=True, progress=progress
        )
        records[row, seed] = {
            "table": table.name,
            "row": row,
            "seed": seed,
            "config": config.name,
            "iterations": config.iterations,
            "miou": result.miou,
            "class_iou": finite(result.class_iou),
            "absent_classes": absent_names(result.class_iou),
        }
        del result  # and its network: the next run's memory is its own
        if current().is_main:
            write_text_whole(results, json.dumps([*records.values()], indent=2) + "\n")
            write_text_whole(folder / "table.md", format_results(table, records) + "\n")
    return format_results(table, records)


def format_results(table: Table, records: dict[tuple[str, int], dict]) -> str:
    """A Markdown table: ours (mean mIoU in percent over seeds, and how many) and the paper's."""
    cells = [("row", "", "ours", "seeds", "paper")]
    for row in table.rows:
        found = [record["miou"] for (name, _), record in records.items() if name == row.name]
        ours = f"{100 * fmean(found):.2f}" if found else "-"
        paper = "-" if row.paper is None else f"{row.paper:.1f}"
        cells.append((row.name, row.title, ours, str(len(found)) if found else "", paper))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    trained = sorted({(record["config"], record["iterations"]) for record in records.values()})
    runs = "; ".join(f"{name}, {iterations} iterations" for name, iterations in trained)
    notes = [
        f"mIoU in percent. ours: trained here ({runs or 'nothing yet'}). paper: the figures that "
        f"{SOURCE}, prints in its Table {table.name.removeprefix('table')} ({table.title})."
    ]
    for (row, seed), record in records.items():
        note = absence_note(record["class_iou"])
        if note:
            notes.append(f"{row} seed {seed}: {note}.")
    if any(name != table.config for name, _ in trained):
        notes.append("Ours are of other data than the paper's and cannot be compared with them.")
    return "\n".join([*lines, "", *notes])


def _read_records(path: Path) -> dict[tuple[str, int], dict]:
    if not path.is_file():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {(record["row"], record["seed"]): record for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no list of results ({error}): move it away, or take another folder"
        ) from error
