"""The machine that the figures were measured on."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

import cac_ext
from benchmarks.arguments import without_folders
from benchmarks.measure.records import Commit, Machine, Software

#: Where Linux reports how it schedules.
_KERNEL = Path("/proc/sys/kernel")
#: Instruction sets that decide the speed of matrix products.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")
#: Environment variables with these prefixes change the speed of torch and its libraries.
_SPEED_VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "MALLOC_", "GLIBC_"),
    *("TORCH", "PYTORCH", "ATEN_", "THP_MEM_ALLOC_", "NVIDIA_TF32_", "CUBLAS"),
    *("CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS"),
)
#: But not those with these endings: they only name a place.
_PATH_VARIABLES = ("_HOME", "_DIR", "_PATH", "_ROOT")


def _cpu_info() -> tuple[str, list[str]]:
    """Model name and relevant instruction sets."""
    model, flags = platform.processor() or platform.machine(), list[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return model, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            present = set(value.split())
            flags = [name for name in _INSTRUCTION_SETS if name in present]
    return model, flags


def _group_folders(controller: str) -> Iterator[Path]:
    """Folders with the limits of this process's control groups, the narrowest first."""
    top = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = top / controller if controllers else top  # the older form has a tree for each
        folder = root / path.strip("/")
        while folder != root and root in folder.parents:
            yield folder
            folder = folder.parent
    yield from (top, top / controller)


def _numbers(path: Path) -> list[int]:
    """The numbers in a file; none if it is missing or says ``max``."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def usable_cores() -> int:
    """Processors that this process may keep busy: those of its set, within its group quotas."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for folder in _group_folders("cpu"):
        found = _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"),
            *_numbers(folder / "cpu.cfs_period_us"),
        ]
        if len(found) == 2 and min(found) > 0:  # a quota of -1 is none
            cores = min(cores, max(round(found[0] / found[1]), 1))
    return cores


def available_memory() -> int | None:
    """Bytes that a process may still take; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if not found:
        return None
    available = found[0] * 1024
    for folder in _group_folders("memory"):  # the limits of a container
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            pair = _numbers(folder / limit) + _numbers(folder / used)
            if len(pair) == 2:
                taken = pair[1] - _unused_cache(folder)
                available = min(available, max(pair[0] - taken, 1))
    return available


def _unused_cache(folder: Path) -> int:
    """Bytes of cached files, which a memory group frees when memory is needed."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        found = dict(line.split() for line in lines)
        return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def describe_machine(device: torch.device) -> Machine:
    """Hardware and thread count; no host name, so that the file can be shared."""
    model, instruction_sets = _cpu_info()
    description: Machine = {
        "device": device.type,
        "cpu": model,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_sets": instruction_sets,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system knows
        description["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description["gpu"] = properties.name
        description["gpu_memory_bytes"] = properties.total_memory
        description["gpu_capability"] = f"{properties.major}.{properties.minor}"
    return description


def describe_process() -> Machine:
    """What changes the speed of this process: variables, priority, scheduling policy."""
    variables = {
        name: without_folders(value)
        for name, value in sorted(os.environ.items())
        if name.startswith(_SPEED_VARIABLES) and not name.endswith(_PATH_VARIABLES)
    }
    if "LD_PRELOAD" in os.environ:
        libraries = os.environ["LD_PRELOAD"].replace(":", " ").split()
        variables["LD_PRELOAD"] = " ".join(Path(library).name for library in libraries)
    found: Machine = {"environment": variables}
    if hasattr(os, "getpriority"):
        found["niceness"] = os.getpriority(os.PRIO_PROCESS, 0)
    if hasattr(os, "sched_getscheduler"):
        policies = ("OTHER", "BATCH", "IDLE", "FIFO", "RR")
        names = {getattr(os, f"SCHED_{name}", None): f"SCHED_{name}" for name in policies}
        policy = os.sched_getscheduler(0) & ~getattr(os, "SCHED_RESET_ON_FORK", 0)
        if policy != os.SCHED_OTHER:
            found["scheduling_policy"] = names.get(policy, str(policy))
        if policy in (getattr(os, "SCHED_FIFO", -1), getattr(os, "SCHED_RR", -1)):
            found["halted_share"] = _halted_share()
    return found


def _halted_share() -> float:
    """Share of every period in which Linux halts real-time processes: 5% by default.

    The stop comes in one piece, usually 50 ms, and so falls into some timed calls alone.
    """
    try:
        period = int((_KERNEL / "sched_rt_period_us").read_text())
        allowed = int((_KERNEL / "sched_rt_runtime_us").read_text())
    except (OSError, ValueError):
        return 0.0
    return 0.0 if allowed < 0 else max(0.0, 1 - allowed / period)


def describe_software() -> Software:
    """Versions that can change a figure."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cac_ext": cac_ext.build_info(),
    }


def describe_commit() -> Commit:
    """The commit of the checkout that the benchmark runs from; empty outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}
