"""The JSON file that every benchmark writes and that `report` and `compare` read."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import UsageError
from benchmarks.measure.foreign_load import ForeignLoad
from benchmarks.measure.machine import (
    describe_commit,
    describe_machine,
    describe_process,
    describe_software,
)
from benchmarks.measure.records import (
    CaseRecord,
    CheckRecord,
    Commit,
    Extra,
    Limits,
    Machine,
    Software,
)
from benchmarks.measure.timing import percentile
from cac_ext.train.runtime.json_files import read_json, write_json

#: Counts up when a reader of the old form would misunderstand the new one.
SCHEMA = "cac_ext-benchmark-1"

#: A run is disturbed if other programs use more than this share of the processors.
BUSY = 0.05


@dataclass
class Row:
    """One implementation in one type on one case in one phase. Sizes in bytes, times in seconds.

    ``status`` is ok, out_of_memory, failed, skipped or timed_out; ``detail`` explains all but ok.
    """

    case: str
    implementation: str
    dtype: str
    phase: str
    status: str = "ok"
    detail: str = ""
    samples: list[float] = field(default_factory=list)
    warmed_up: bool = True
    extra_memory: int | None = None  # peak beyond the inputs, gradients or a sample included
    executed_operations: int | None = None
    nominal_operations: int | None = None
    compulsory_bytes: int | None = None
    share_of_matrix_rate: float | None = None
    multiplied_as: str | None = None  # a `Multiplication`, on the CPU
    share_of_peak: float | None = None  # of its rate on registers, every executed product counted
    share_of_bandwidth: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.case, self.implementation, self.dtype, self.phase

    @property
    def median(self) -> float:
        return percentile(self.samples, 0.5)

    @property
    def p20(self) -> float:
        return percentile(self.samples, 0.2)

    @property
    def p80(self) -> float:
        return percentile(self.samples, 0.8)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the summary of the samples."""
        summary = {}
        if self.samples:
            summary = {"median": self.median, "p20": self.p20, "p80": self.p80}
        return {**asdict(self), **summary}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        return cls(**{k: v for k, v in data.items() if k not in ("median", "p20", "p80")})


@dataclass
class Results:
    """A whole run: how, where, with which versions, and its figures."""

    kind: str  # the command: loss, family, sets, step, parts, data or convergence
    settings: dict[str, Any]
    machine: Machine
    software: Software
    commit: Commit
    created: str
    command: str = ""  # as typed, without folders
    complete: bool = True  # False if the run was interrupted or failed
    cases: dict[str, CaseRecord] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    checks: list[CheckRecord] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    extra: Extra = field(default_factory=Extra)

    @classmethod
    def start(
        cls, kind: str, settings: dict[str, Any], device: torch.device, command: str = ""
    ) -> Results:
        """Results without figures, with this machine, these versions and the present time."""
        return cls(
            kind=kind,
            settings=settings,
            machine={**describe_machine(device), **describe_process()},
            software=describe_software(),
            commit=describe_commit(),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=command,
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was measured yet."""
        return not self.rows and not self.extra.get("curves")

    def skip(self, what: str, reason: str) -> None:
        """Note that something was not measured and has no row."""
        self.extra.setdefault("skipped", []).append(f"{what}: {reason}")

    def warning(self) -> str:
        """What a reader must know before trusting the figures; usually empty."""
        found = [f"SKIPPED {sentence}" for sentence in self.extra.get("skipped", [])]
        if not self.complete:
            found.append("INCOMPLETE: the run ended early; missing figures were not measured")
        share = self.machine.get("foreign_load") or 0.0
        if share > BUSY:
            found.append(
                f"WARNING: other programs used {share:.0%} of the processors during this run"
            )
        halted = self.machine.get("halted_share") or 0.0
        if halted:
            found.append(
                f"WARNING: the system halted this run for {halted:.0%} of the time, once a second, "
                "as always at real-time priority; use nice instead"
            )
        return "\n".join(found)

    def find(self, case: str, implementation: str, dtype: str, phase: str) -> Row | None:
        for row in self.rows:
            if row.key == (case, implementation, dtype, phase):
                return row
        return None

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        rows = [row.to_json() for row in self.rows]
        write_json(path, {"schema": SCHEMA, **fields, "rows": rows})

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            UsageError: it cannot be read or is of another version.
        """
        try:
            data = read_json(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path} is not a benchmark result: {error}") from error
        found = data.pop("schema", None) if isinstance(data, dict) else None
        if found != SCHEMA:
            raise UsageError(
                f"{path} is not a benchmark result of this version: its schema is {found!r}, "
                f"but {SCHEMA!r} is needed"
            )
        curves = data.get("extra", {}).get("curves", {}).values()
        if any("loss" in of_seed for of_seed in curves):
            raise UsageError(
                f"{path} is of an older version, with curves that are not sorted by seed; measure "
                "again with: python -m benchmarks convergence"
            )
        data["rows"] = [Row.from_json(row) for row in data["rows"]]
        return cls(**data)


class Kept:
    """Results that are printed and saved once, however the measurement ends.

    Args:
        results: filled by the measurement.
        path: the file to write, or None.
        table: makes the text that is printed at the end.
    """

    def __init__(
        self, results: Results, path: Path | None, table: Callable[[Results], str]
    ) -> None:
        self.results, self._path, self._table = results, path, table
        self._load = ForeignLoad()
        self._finished, self._lock = False, threading.Lock()

    def save_so_far(self) -> None:
        """Write all that was measured until now, in case the process is killed."""
        if self._path is not None and not self.results.empty:
            self.results.save(self._path)

    def finish(self) -> None:
        """Print and save; a second call does nothing."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
            self._finish()

    def end_process(self) -> None:
        """Print and save, then end the process, even if its main thread is stuck."""
        self.finish()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _finish(self) -> None:
        results, path = self.results, self._path
        results.machine["foreign_load"] = self._load.share()
        results.rows = [row for row in results.rows if row.samples or row.status != "ok"]
        if results.complete or not results.empty:
            try:
                if path is not None:
                    results.save(path)
            finally:  # on a full disk only the table remains
                print(self._table(results))
            if path is not None:
                print(f"\nwritten: {path}")
        elif path is not None:
            print(f"nothing was measured yet; {path} is not written", file=sys.stderr)


@contextmanager
def keeping(
    results: Results, output: str | None, table: Callable[[Results], str]
) -> Iterator[Kept]:
    """Prints and saves the results so far, however the measurement inside ends.

    Args:
        results: filled by the measurement; ``complete`` and the foreign load are set here.
        output: the file to write, or None.
        table: makes the text that is printed at the end.

    Raises:
        UsageError: before anything is measured, if ``output`` cannot be written.
    """
    path = Path(output) if output else None
    if path is not None:
        _check_writable(path)
    kept = Kept(results, path, table)
    results.complete = False
    try:
        yield kept
        results.complete = True
    finally:
        kept.finish()


def _check_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"--output {path} cannot be written: {error.strerror}") from error
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; give a file, like {path / 'a.json'}")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"--output {path} is write-protected")
