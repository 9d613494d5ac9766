"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import cac_ext
from benchmarks.arguments import without_folders

#: Instruction sets that decide how fast matrix products are.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")
#: Environment variables whose names begin so change how fast torch and its libraries are.
_SPEED_VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "MALLOC_", "GLIBC_"),
    *("TORCH", "PYTORCH", "ATEN_", "THP_MEM_ALLOC_", "NVIDIA_TF32_", "CUBLAS"),
    *("CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS"),
)
#: But not these: they only say where something lies.
_PATH_VARIABLES = ("_HOME", "_DIR", "_PATH", "_ROOT")


def _cpu_info() -> tuple[str, list[str]]:
    """Model name and relevant instruction sets."""
    model, flags = platform.processor() or platform.machine(), []
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
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


def available_memory() -> int | None:
    """Bytes a process may still take, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
                break
        else:
            return None
    except OSError:
        return None
    try:  # a container's own limit, where there is one
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return available


def describe_machine(device: torch.device) -> dict:
    """Hardware and thread count; no host name, so that the file can be shared."""
    model, instruction_sets = _cpu_info()
    description = {
        "device": device.type,
        "cpu": model,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_sets": instruction_sets,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "sysconf"):
        description["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description["gpu"] = properties.name
        description["gpu_memory_bytes"] = properties.total_memory
        description["gpu_capability"] = f"{properties.major}.{properties.minor}"
    return description


def describe_process() -> dict:
    """What of this process's surroundings changes speed: variables, priority, scheduling policy."""
    variables = {
        name: without_folders(value)
        for name, value in sorted(os.environ.items())
        if name.startswith(_SPEED_VARIABLES) and not name.endswith(_PATH_VARIABLES)
    }
    if "LD_PRELOAD" in os.environ:
        libraries = os.environ["LD_PRELOAD"].replace(":", " ").split()
        variables["LD_PRELOAD"] = " ".join(Path(library).name for library in libraries)
    found: dict = {"environment": variables}
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
    """Share of every period in which Linux halts processes of real-time priority: mostly 5%.

    The stop comes in one piece, usually 50 ms, and so falls into some timed calls alone.
    """
    try:
        folder = Path("/proc/sys/kernel")
        period = int((folder / "sched_rt_period_us").read_text())
        allowed = int((folder / "sched_rt_runtime_us").read_text())
    except (OSError, ValueError):
        return 0.0
    return 0.0 if allowed < 0 else max(0.0, 1 - allowed / period)


def describe_software() -> dict:
    """Versions that can change a figure."""
    build_info = getattr(cac_ext, "build_info", None)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cac_ext": build_info() if build_info else {},
    }


def describe_commit() -> dict:
    """The commit of the checkout the benchmark runs from; empty outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
