"""The JSON file that every benchmark writes and that `report` and `compare` read."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.errors import UsageError
from benchmarks.foreign_load import ForeignLoad
from benchmarks.machine import (
    describe_commit,
    describe_machine,
    describe_process,
    describe_software,
)
from benchmarks.timing import percentile

#: Raised whenever a reader of the older form would misunderstand the newer one.
SCHEMA = "cac_ext-benchmark-1"

#: Share of the processors used by others from which a run is called disturbed.
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
    extra_memory: int | None = None  # peak beyond the inputs, outputs included
    executed_operations: int | None = None
    nominal_operations: int | None = None
    compulsory_bytes: int | None = None
    share_of_matrix_rate: float | None = None
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

    def to_json(self) -> dict:
        summary = {}
        if self.samples:
            summary = {"median": self.median, "p20": self.p20, "p80": self.p80}
        return {**asdict(self), **summary}

    @classmethod
    def from_json(cls, data: dict) -> Row:
        return cls(**{k: v for k, v in data.items() if k not in ("median", "p20", "p80")})


@dataclass
class Results:
    """A whole run: where, with what and what came out."""

    kind: str  # the command: loss, step or convergence
    settings: dict
    machine: dict
    software: dict
    commit: dict
    created: str
    command: str = ""  # as typed, without folders
    complete: bool = True  # False of a run that was interrupted or failed
    cases: dict[str, dict] = field(default_factory=dict)
    limits: dict = field(default_factory=dict)  # best matrix rate of each type, memory bandwidth
    checks: list[dict] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    extra: dict = field(default_factory=dict)  # what only this kind has

    @classmethod
    def start(cls, kind: str, settings: dict, device: torch.device, command: str = "") -> Results:
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
        """Say that something without a row of its own was not measured."""
        self.extra.setdefault("skipped", []).append(f"{what}: {reason}")

    def warning(self) -> str:
        """What a reader must know before trusting the figures; mostly nothing."""
        found = [f"SKIPPED {sentence}" for sentence in self.extra.get("skipped", [])]
        if not self.complete:
            found.append("INCOMPLETE: the run ended early, what is missing was not measured")
        share = self.machine.get("foreign_load") or 0.0
        if share > BUSY:
            found.append(
                f"WARNING: other programs used {share:.0%} of the processors during this run"
            )
        halted = self.machine.get("halted_share") or 0.0
        if halted:
            found.append(
                f"WARNING: the system halted this run for {halted:.0%} of the time, in one piece a "
                "second, as it does with real-time priority; use nice instead"
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
        data = {"schema": SCHEMA, **fields, "rows": [row.to_json() for row in self.rows]}
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")
            partial.replace(path)
        finally:  # gone already unless the disk is full or Ctrl-C came
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Results:
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path} is no benchmark result: {error}") from error
        found = data.pop("schema", None) if isinstance(data, dict) else None
        if found != SCHEMA:
            raise UsageError(
                f"{path} is no benchmark result of this version: its schema is {found!r}, "
                f"needed is {SCHEMA!r}"
            )
        curves = data.get("extra", {}).get("curves", {}).values()
        if any("loss" in of_seed for of_seed in curves):
            raise UsageError(
                f"{path} is of an older version, whose curves are not sorted by seed: measure it "
                "again with python -m benchmarks convergence"
            )
        data["rows"] = [Row.from_json(row) for row in data["rows"]]
        return cls(**data)


class Kept:
    """Results that are printed and saved once, whatever ends their measurement.

    Args:
        results: what the measurement fills.
        path: the file to write, or None.
        table: the text to print at the end.
    """

    def __init__(
        self, results: Results, path: Path | None, table: Callable[[Results], str]
    ) -> None:
        self.results, self._path, self._table = results, path, table
        self._load = ForeignLoad()
        self._finished, self._lock = False, threading.Lock()

    def save_so_far(self) -> None:
        """For those who must be ended by force: the file holds all that was measured until now."""
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
        """Print and save, then end the process, whatever its main thread is doing."""
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
            finally:  # on a full disk the table is all that is left
                print(self._table(results))
            if path is not None:
                print(f"\nwritten: {path}")
        elif path is not None:
            print(f"nothing was measured yet: {path} is not written", file=sys.stderr)


@contextmanager
def keeping(
    results: Results, output: str | None, table: Callable[[Results], str]
) -> Iterator[Kept]:
    """Whatever ends the measurement inside, the results so far are printed and saved.

    Args:
        results: what the measurement fills; ``complete`` and the foreign load are set here.
        output: the file to write, or None.
        table: the text to print at the end.

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
        raise UsageError(f"--output {path} is a folder; needed is a file, like {path / 'a.json'}")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"--output {path} is write-protected")


def _finite(value: object) -> object:
    """JSON has no nan: such values become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
