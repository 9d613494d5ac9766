"""GPU times exclude the host: its launches are queued before the first mark."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure.timing import Clock


class Recorder:
    """Replaces torch.cuda and records the requests to the GPU in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[str] = []
        recorder = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                recorder.queue.append("mark")

            def elapsed_time(self, end: Event) -> float:
                return 2.0  # milliseconds

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.queue.append("busy"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.queue.append("wait"))


def test_the_gpu_is_busy_before_the_first_mark_and_only_there(monkeypatch):
    recorder = Recorder(monkeypatch)
    clock = Clock(torch.device("cuda"))
    for _ in range(3):
        clock.mark()
    assert clock.intervals() == [2e-3, 2e-3]
    assert recorder.queue == ["busy", "mark", "mark", "mark", "wait"]


def test_a_cpu_is_timed_by_the_clock(monkeypatch):
    recorder = Recorder(monkeypatch)
    clock = Clock(torch.device("cpu"))
    clock.mark()
    clock.mark()
    assert 0 <= clock.intervals()[0] < 10
    assert recorder.queue == []
