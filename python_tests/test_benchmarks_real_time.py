"""Results warn of real-time priority, at which Linux halts a process now and then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.measure import machine
from benchmarks.measure.results import Results


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="no scheduling policies here")
def test_a_run_at_real_time_priority_says_that_it_was_halted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_OTHER)
    assert "halted_share" not in Results.start("step", {}, device).machine
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_FIFO)
    monkeypatch.setattr(machine, "_halted_share", lambda: 0.05)
    results = Results.start("step", {}, device)
    assert results.machine["scheduling_policy"] == "SCHED_FIFO"
    assert "halted this run for 5% of the time" in results.warning()
    monkeypatch.setattr(machine, "_halted_share", lambda: 0.0)
    assert "halted" not in Results.start("step", {}, device).warning()


@pytest.mark.parametrize(
    ("period", "allowed", "share"),
    [("1000000", "950000", 0.05), ("1000000", "-1", 0.0), ("2000", "500", 0.75), (None, "1", 0.0)],
)
def test_the_share_is_the_systems_own(
    period: str | None, allowed: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if period is not None:  # else the system does not report it
        (tmp_path / "sched_rt_period_us").write_text(f"{period}\n")
    (tmp_path / "sched_rt_runtime_us").write_text(f"{allowed}\n")
    monkeypatch.setattr(machine, "_KERNEL", tmp_path)
    assert machine._halted_share() == pytest.approx(share)
