"""The benchmarks run on systems that report less, or allow less, than usual."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.measure import machine
from benchmarks.measure.foreign_load import ForeignLoad
from benchmarks.measure.memory import free_bytes, limited_memory, status_bytes
from benchmarks.measure.memory_probe import PeakGrowth
from benchmarks.measure.results import Results


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Replaces /proc and /sys by the given files; all others are missing."""

    def replace(files: dict[str, str]) -> None:
        right_read, right_write = Path.read_text, Path.write_text

        def read(self: Path, *arguments, **options) -> str:
            if not str(self).startswith(("/proc", "/sys")):
                return right_read(self, *arguments, **options)
            if str(self) in files:
                return files[str(self)]
            raise FileNotFoundError(2, "No such file or directory", str(self))

        def write(self: Path, *arguments, **options) -> int:
            if str(self).startswith(("/proc", "/sys")):
                raise FileNotFoundError(2, "No such file or directory", str(self))
            return right_write(self, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", read)
        monkeypatch.setattr(Path, "write_text", write)

    return replace


ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics asimddp bf16 i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd49
"""


def test_an_arm_processor_is_described(system, monkeypatch: pytest.MonkeyPatch) -> None:
    system({"/proc/cpuinfo": ARM})
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    described = machine.describe_machine(torch.device("cpu"))
    assert described["cpu"] == "aarch64"
    assert described["instruction_sets"] == ["asimd", "bf16"]


@pytest.mark.parametrize("text", ["", "cpu\t\t: POWER9, altivec supported\n", "flags\t\t:\n"])
def test_a_processor_that_lists_nothing_is_described(system, text: str) -> None:
    system({"/proc/cpuinfo": text})
    assert machine.describe_machine(torch.device("cpu"))["instruction_sets"] == []


def test_a_system_without_proc_runs_and_says_what_it_does_not_know(
    system, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system({})
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: int("no"))  # ValueError
    assert machine.available_memory() is None
    assert free_bytes() == 0
    assert machine.usable_cores() == machine.os.cpu_count()
    assert ForeignLoad().share() is None
    with pytest.raises(OSError, match="status"):
        status_bytes("VmRSS")
    with limited_memory(2**20):  # sets no limit
        torch.ones(2**25, dtype=torch.uint8)
    peaks = iter([500, 700, 600])
    monkeypatch.setattr(PeakGrowth, "_peak_of_process", staticmethod(lambda: next(peaks)))
    growth = PeakGrowth()
    assert growth.bytes() == 200
    assert growth.bytes() == 100

    monkeypatch.setitem(CASES, "tiny", [Case("tiny", A=16, N=64, C=8, K=3)])
    monkeypatch.setattr("benchmarks.measure.limits._SIZES", {"cpu": (1e8, 2**20)})
    output = tmp_path / "out.json"
    words = ["loss", "--cases", "tiny", "--implementations", "ours:float32", "--no-memory"]
    assert main([*words, "--repeats", "1", "--threads", "1", "--output", str(output)]) == 0
    results = Results.load(output)
    assert results.find("tiny", "ours", "float32", "both").status == "ok"
    assert "memory_bytes" not in results.machine
    assert results.machine["foreign_load"] is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"/sys/fs/cgroup/cpu.max": "25000 100000\n"}, 1),  # a quarter of a processor
        ({"/sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),  # more than there are
        (  # a group within a group; the narrowest counts
            {
                "/proc/self/cgroup": "0::/outer/inner\n",
                "/sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
                "/sys/fs/cgroup/outer/cpu.max": "200000 100000\n",
            },
            2,
        ),
        (  # the older form, as in many containers
            {
                "/proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_threads_are_as_many_as_a_container_may_keep_busy(
    files: dict[str, str], cores: int, system, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        machine.os, "sched_getaffinity", lambda process: set(range(8)), raising=False
    )
    system(files)
    assert machine.usable_cores() == cores


MEMINFO = "MemTotal:       33554432 kB\nMemFree: 1024 kB\nMemAvailable:   16777216 kB\n"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 16 * 2**30),
        (
            {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": "5\n"},
            16 * 2**30,
        ),
        (
            {
                "/sys/fs/cgroup/memory.max": f"{2**32}\n",
                "/sys/fs/cgroup/memory.current": f"{2**31}\n",
                "/sys/fs/cgroup/memory.stat": f"anon 7\ninactive_file {2**30}\n",
            },
            3 * 2**30,
        ),
        (
            {
                "/proc/self/cgroup": "4:memory:/docker/abc\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**31}\n",
                "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2**30}\n",
            },
            2**30,
        ),
    ],
)
def test_memory_that_is_free_is_what_a_container_leaves(
    files: dict[str, str], available: int, system
) -> None:
    system({"/proc/meminfo": MEMINFO, **files})
    assert machine.available_memory() == available


def test_the_limit_of_memory_may_be_larger_than_any(system) -> None:
    with limited_memory(10**30):
        torch.ones(2**20, dtype=torch.uint8)
