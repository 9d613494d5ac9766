"""The rows of a table of the paper, trained: our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from cac_ext.train.config import Config, load
from cac_ext.train.errors import ConfigError
from cac_ext.train.evaluate import absence_note
from cac_ext.train.experiments.engine import RESULTS, Plan, RunId, Score, run_plan
from cac_ext.train.experiments.tables import SOURCE, Row, Table
from cac_ext.train.loop import TrainResult
from cac_ext.train.runtime.distributed import current
from cac_ext.train.runtime.json_files import read_json
from cac_ext.train.runtime.text_tables import markdown_table
from cac_ext.train.runtime.whole_files import write_text_whole


class RowRecord(Score):
    """A run of a table in ``results.json``."""

    table: str
    row: str
    seed: int
    config: str
    iterations: int


def plan_rows(
    table: Table,
    rows: Sequence[Row],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    config: str | None = None,
) -> dict[RunId, Config]:
    """The configuration of each (row, seed), all checked before anything is trained.

    Args:
        table: of the rows.
        rows: those without overrides, for which only the paper has figures, are left out.
        seeds: of the runs.
        overrides: the user's; they come last and win.
        config: replaces the table's configuration.

    Raises:
        ConfigError: nothing is left to train, or a configuration cannot be used.
    """
    trained = [row for row in rows if row.overrides is not None]
    if not trained or not seeds:
        raise ConfigError(
            "there is nothing to train: these rows are other authors' methods, for which only the "
            "paper's figures are known"
        )
    return {
        RunId(row.name, seed): load_row(table, row, [*overrides, f"seed={seed}"], config)
        for seed in seeds
        for row in trained
    }


def load_row(
    table: Table, row: Row, overrides: Sequence[str] = (), config: str | None = None
) -> Config:
    """A row's whole configuration."""
    if row.overrides is None:
        raise ConfigError(
            f"{row.name} of {table.name} has no configuration: only the paper's figure is known"
        )
    return load(config or table.config, [*table.overrides, *row.overrides, *overrides])


def ablate(table: Table, runs: Plan, folder: Path, *, progress: bool = True) -> str:
    """Trains every run that is not finished yet; returns the table.

    ``folder`` receives what `run_plan` writes and ``table.md``, updated after each run. Rows that
    were trained into the same folder earlier stay in the table.
    """

    def describe(run: RunId, config: Config, score: Score) -> RowRecord:
        return {
            "table": table.name,
            "row": run.name,
            "seed": run.seed,
            "config": config.name,
            "iterations": config.iterations,
            **score,
        }

    def write_table(run: RunId, result: TrainResult, records: Mapping[RunId, RowRecord]) -> None:
        if current().is_main:
            write_text_whole(folder / "table.md", f"{format_results(table, records)}\n")

    earlier = _read_records(folder / RESULTS)
    records = run_plan(
        runs, folder, describe, earlier=earlier, after_each=write_table, progress=progress
    )
    return format_results(table, records)


def format_results(table: Table, records: Mapping[RunId, RowRecord]) -> str:
    """A Markdown table: our mean mIoU in percent over seeds, their number, and the paper's mIoU."""
    lines = []
    for row in table.rows:
        found = [record["miou"] for (name, _), record in records.items() if name == row.name]
        ours = f"{100 * fmean(found):.2f}" if found else "-"
        paper = "-" if row.paper is None else f"{row.paper:.1f}"
        lines.append([row.name, row.title, ours, str(len(found)) if found else "", paper])
    header = ["row", "", "ours", "seeds", "paper"]
    trained = sorted({(record["config"], record["iterations"]) for record in records.values()})
    runs = "; ".join(f"{name}, {iterations} iterations" for name, iterations in trained)
    notes = [
        f"mIoU in percent. ours: trained here ({runs or 'nothing yet'}). paper: the figures that "
        f"{SOURCE}, prints in its Table {table.name.removeprefix('table')} ({table.title})."
    ]
    for (name, seed), record in records.items():
        note = absence_note(record["class_iou"])
        if note:
            notes.append(f"{name} seed {seed}: {note}.")
    if any(name != table.config for name, _ in trained):
        notes.append("Ours are of other data than the paper's and cannot be compared with them.")
    return "\n".join([markdown_table(header, lines, left=len(header), padded=True), "", *notes])


def _read_records(path: Path) -> dict[RunId, RowRecord]:
    if not path.is_file():
        return {}
    try:
        records: list[RowRecord] = read_json(path)
        return {RunId(record["row"], record["seed"]): record for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a list of results ({error}): move it away, or take another folder"
        ) from error
