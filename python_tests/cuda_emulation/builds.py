"""Compiles the CUDA sources against the device emulation, and keeps the objects.

Objects and programs are in ``build/cuda_emulation`` of the repository, named by a hash of their
inputs, so that unchanged sources are compiled once, not in every test run. Any number of processes
may build at a time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
KEPT = ROOT / "build" / "cuda_emulation"

COMPILE = ["-std=c++17", "-fno-strict-aliasing", "-ffp-contract=off", "-DCAC_DEVICE_EMULATION"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1"]

#: The kernels take longer to compile than to run; most of a run is the emulation.
EMULATION_LEVEL, KERNEL_LEVEL, SANITIZED_KERNEL_LEVEL = "-O1", "-Og", "-O0"

#: This many of the most recently used files stay; others are removed after an hour without use.
FILES_KEPT = 200
SECONDS_KEPT = 3600


def compiler() -> str | None:
    """The C++ compiler to use, ``None`` if this machine has none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def build(
    *,
    sanitize: bool = False,
    flags: Sequence[str] = (),
    csrc: Path = CSRC,
    only: Sequence[str] | None = None,
) -> Path:
    """The program ``emulate``, compiled if necessary.

    ``only`` names the sources (stems, for example ``stream_bf16``) to which ``csrc`` and ``flags``
    apply; all others are compiled from the tree without them. ``None``: they apply to all.
    """
    remove_unused()
    kernels = [path.stem for path in (CSRC / "kernels" / "cuda").glob("*.cu")]
    emulation = [path.stem for path in HERE.glob("*.cpp")]
    common = [*COMPILE, *(SANITIZE if sanitize else [])]

    def compile_one(stem: str) -> Path:
        if stem in emulation:
            return compiled(HERE / f"{stem}.cpp", CSRC, [*common, EMULATION_LEVEL])
        options = [*common, SANITIZED_KERNEL_LEVEL if sanitize else KERNEL_LEVEL]
        changed = only is None or stem in only
        folder = csrc if changed else CSRC
        source = folder / "kernels" / "cuda" / f"{stem}.cu"
        return compiled(source, folder, [*options, *(flags if changed else [])])

    with ThreadPoolExecutor(max_workers=2) as pool:
        # The longest first.
        stems = sorted(kernels + emulation, key=lambda stem: not stem.startswith("stream"))
        objects = dict(zip(stems, pool.map(compile_one, stems), strict=True))
    # Changed sources first: of functions that several objects define, the linker takes the first.
    order = sorted(stems, key=lambda stem: (only is None or stem not in only, stem))
    linked = [str(objects[stem]) for stem in order]

    def link(target: Path) -> None:
        run_command([compiler(), *common, *linked, "-o", str(target)])

    return kept("emulate", hash_of("link", *common, *linked), link)


def compiled(source: Path, csrc: Path, flags: Sequence[str]) -> Path:
    """The object of one source, with the headers in ``csrc``."""

    def compile_it(target: Path) -> None:
        command = [compiler(), *flags, f"-I{csrc}", f"-I{HERE}", "-w", "-x", "c++"]
        run_command([*command, "-c", str(source), "-o", str(target)])

    headers = [csrc / "kernels", csrc / "kernels" / "cuda", HERE]
    key = hash_of(*flags, source.read_text(), *map(headers_of, headers))
    return kept(f"{source.stem}.o", key, compile_it)


@functools.cache
def headers_of(folder: Path) -> str:
    """Hash of the names and contents of the headers in ``folder``."""
    headers = sorted(path for path in folder.iterdir() if path.suffix in {".h", ".cuh"})
    return hash_of(*(part for path in headers for part in (path.name, path.read_text())))


@functools.cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "-v"], capture_output=True, text=True, check=True).stderr


def hash_of(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in (compiler_version(), *parts):
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()[:20]


def kept(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The file ``name`` for ``key``; ``make`` writes it if it does not exist yet."""
    path = KEPT / f"{key}-{name}"
    try:
        os.utime(path)  # used now
    except FileNotFoundError:
        KEPT.mkdir(parents=True, exist_ok=True)
        unfinished = KEPT / f"{key}-{name}.{os.getpid()}"
        make(unfinished)
        unfinished.replace(path)  # never half written, even if another process builds it too
    return path


@functools.cache
def remove_unused() -> None:
    """Once a process. Files used within the hour stay: another process may still link them."""
    files = []
    for path in KEPT.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            files.append((path.stat().st_mtime, path))
    for used, path in sorted(files, reverse=True)[FILES_KEPT:]:
        if time.time() - used > SECONDS_KEPT:
            path.unlink(missing_ok=True)


def run_command(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def mutate(csrc: Path, folder: Path, change: Callable[[str, str], str]) -> Path:
    """A copy of ``csrc/kernels`` in which ``change(name, text)`` replaces the text of each file."""
    target = folder / "csrc"
    for path in (csrc / "kernels").rglob("*"):
        if path.suffix in {".h", ".cuh", ".cu"}:
            copy = target / path.relative_to(csrc)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(change(path.name, path.read_text()))
    return target


def with_one_shape(text: str, shape: str) -> str:
    """``stream.cuh`` with one of the selections in ``select_variant`` (for example
    ``select_wide<Arithmetic>``): the other kernels need not be compiled."""
    selections = re.findall(r"(?:  if \(channels <= \d+\) |  )return select_\w+<Arith.*;\n", text)
    (kept,) = [line for line in selections if shape in line]
    everything = "".join(selections)
    assert everything in text
    return text.replace(everything, "  " + kept[kept.index("return") :])
