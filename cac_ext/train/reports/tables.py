"""Tables of a report: a row for each thing, a column for each run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: what it shows.
        strong: whether it stands out.
        share: in [0, 1], the length of the bar behind a number; None for a cell without a bar.
    """

    text: str
    strong: bool = False
    share: float | None = None


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        label: its name.
        cells: one for each column.
        color: ``#rrggbb`` of a patch before the name, or nothing.
        meaning: explains the name where the pointer rests.
        total: whether it sums up the rows above.
    """

    label: str
    cells: Sequence[Cell]
    color: str = ""
    meaning: str = ""
    total: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        corner: title of the first column.
        columns: titles of the others.
        runs: for each column the number of its run, or None if it belongs to no run.
        rows: below the titles.
        notes: sentences below the table.
        numbers: whether the cells are numbers, which stand at the right.
    """

    corner: str
    columns: Sequence[str]
    runs: Sequence[int | None]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    numbers: bool = False


def percent(share: float | None) -> str:
    """A share in percent; a dash for one that is unknown."""
    return "–" if share is None else f"{100 * share:.2f}"


def best_marked(shares: Sequence[float | None]) -> list[Cell]:
    """Shares in percent with bars; the highest of several different ones stands out."""
    known = [share for share in shares if share is not None]
    best = max(known) if len(set(known)) > 1 else None
    return [Cell(percent(share), share is not None and share == best, share) for share in shares]


def texts(values: Iterable[str]) -> list[Cell]:
    """Plain cells."""
    return [Cell(value) for value in values]
