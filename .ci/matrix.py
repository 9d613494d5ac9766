"""Builds and tests the project with several versions of Python and torch, a line for each pair.

    make test-matrix                                        # 3.10 to 3.14, torch 2.11 to the newest
    make test-matrix MATRIX='--python 3.12 --torch 2.11 2.13'
    make test-matrix MATRIX='--tests all'                   # the default tests instead of the few

Each pair has an environment and a copy of the tracked files below `build/matrix`; a second run uses
the environments again (`--fresh` makes them anew). A Python that this machine lacks, or a pair for
which pip finds no packages that fit together, is skipped with the reason. Interpreters are looked
for on the PATH, among those of pyenv and of uv (`uv python install 3.14` or `pyenv install 3.14`
brings one).

An environment takes 1 GB with a torch for CPUs, several with one for CUDA; pip's own variables
choose between them (`PIP_INDEX_URL`). CUDA kernels are built with `CAC_CUDA=ON` alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
OLDEST_TORCH = (2, 11)
#: What the versions of torch and Python change: the build, the dispatcher, autograd, torch.compile,
#: checkpoints; and one training.
FEW = (
    "python_tests/test_package_start.py",
    "python_tests/test_loss_equals_oracle.py",
    "python_tests/test_loss_errors.py",
    "python_tests/test_loss_autograd.py",
    "python_tests/test_loss_transforms.py",
    "python_tests/test_loss_prepared_negatives.py",
    "python_tests/test_family_autograd.py",
    "python_tests/test_untrusted_files.py",
    "python_tests/test_train_api.py",
)


class Pair(NamedTuple):
    """A version of Python and one of torch, as MAJOR.MINOR."""

    python: str
    torch: str

    @property
    def folder(self) -> Path:
        return FOLDER / f"python{self.python}-torch{self.torch}"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class StageError(Exception):
    """A stage of a pair did not end well."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="3.N")
    parser.add_argument(
        "--torch", nargs="+", metavar="2.N", help="default: every minor version from 2.11 on"
    )
    parser.add_argument("--tests", choices=("few", "all"), default="few")
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    arguments = parser.parse_args()
    versions = arguments.torch or torch_versions()
    lines, failed = [], False
    for python in arguments.python:
        for torch in versions:
            pair = Pair(python, torch)
            outcome, wrong = examine(pair, arguments.tests, arguments.fresh)
            failed |= wrong
            lines.append(f"python {python:5} torch {torch:5} {outcome}")
            print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    return 1 if failed else 0


def torch_versions() -> list[str]:
    """The minor versions that pip finds, from the oldest that is supported on."""
    command = [sys.executable, "-m", "pip", "index", "versions", "torch"]
    found = subprocess.run(command, capture_output=True, text=True)
    minors = {(int(a), int(b)) for a, b in re.findall(r"\b(\d+)\.(\d+)\.\d+", found.stdout)}
    wanted = sorted(minor for minor in minors if minor >= OLDEST_TORCH)
    if not wanted:
        sys.exit(
            f"`pip index versions torch` names no version from 2.11 on: give some with --torch\n"
            f"{found.stderr.strip()}"
        )
    return [f"{a}.{b}" for a, b in wanted]


def examine(pair: Pair, tests: str, fresh: bool) -> tuple[str, bool]:
    """The end of the pair's line, and whether something is wrong with the project."""
    interpreter = find_python(pair.python)
    if interpreter is None:
        return f"skipped: there is no Python {pair.python} on this machine", False
    if fresh:
        shutil.rmtree(pair.folder, ignore_errors=True)
    pair.folder.mkdir(parents=True, exist_ok=True)
    pair.log.write_text("")
    start = time.monotonic()
    done = ""
    try:
        python = make_environment(pair, interpreter)
        done = "installed, "
        tree = copy_tree(pair)
        build(pair, python, tree)
        done += "built, "
        test(pair, python, tree, tests)
    except StageError as error:
        missing = last_match(pair, r"ERROR: ((?:No matching distribution|Cannot install) .*)")
        if missing and not done:
            return f"skipped: {missing}", False
        return f"{done}then: {error}", True
    counts = last_match(pair, r"(\d+ passed.*)") or "no test"
    return f"{done}passed: {counts}; {time.monotonic() - start:.0f} s in all", False


def find_python(version: str) -> Path | None:
    """An interpreter of this version that runs."""
    for candidate in candidates(version):
        code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        try:
            found = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        except OSError:
            continue
        if found.stdout.strip() == version:  # a shim of pyenv exists even if its Python does not
            return candidate
    return None


def candidates(version: str) -> Iterator[Path]:
    yield Path(sys.executable)
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    if shutil.which("uv"):
        command = ["uv", "python", "find", "--no-python-downloads", version]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode == 0:
            yield Path(found.stdout.strip())


def make_environment(pair: Pair, interpreter: Path) -> Path:
    """The environment's Python, with torch and what the build and the tests need."""
    venv = pair.folder / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        stage(pair, "venv", [interpreter, "-m", "venv", venv], ROOT)
    stage(pair, "pip", [*pip_of(python), "--upgrade", "pip>=25.1"], ROOT)
    # Together, so that torchvision is the one for this torch.
    wanted = ["--group", "build", f"torch=={pair.torch}.*"]
    stage(pair, "packages", [*pip_of(python), *wanted], ROOT)
    return python


def pip_of(python: Path) -> list[str | Path]:
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def copy_tree(pair: Pair) -> Path:
    """The files that git knows; objects of an earlier build stay."""
    tree = pair.folder / "tree"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = {name for name in listed.split("\0") if (ROOT / name).is_file()}
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)  # with its time: unchanged files build nothing
    for room in ("cac_ext", "csrc", "python_tests"):
        for path in (tree / room).rglob("*"):
            is_source = path.suffix in (".py", ".cpp", ".cu", ".h", ".cuh")
            if is_source and str(path.relative_to(tree)) not in names:
                path.unlink()  # renamed or removed since
    return tree


def build(pair: Pair, python: Path, tree: Path) -> None:
    cuda = os.environ.get("CAC_CUDA", "OFF")
    wanted = ["--no-build-isolation", "-e", ".[train,bench,test]"]
    stage(pair, "pip install", [*pip_of(python), *wanted], tree, CAC_CUDA=cuda)
    stage(pair, "python -m cac_ext", [python, "-m", "cac_ext"], tree)


def test(pair: Pair, python: Path, tree: Path, tests: str) -> None:
    chosen = FEW if tests == "few" else ()
    command = [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", "not slow", *chosen]
    stage(pair, "pytest", command, tree, OMP_WAIT_POLICY="PASSIVE")


def stage(
    pair: Pair, name: str, command: Sequence[str | Path], folder: Path, **environment: str
) -> None:
    """Runs a command into the pair's log; StageError if it fails."""
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with open(pair.log, "a") as log:
        print(f"\n$ {' '.join(map(str, command))}", file=log, flush=True)
        ended = subprocess.run(
            [*command],
            cwd=folder,
            env={**outside, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode != 0:
        raise StageError(f"{name} ended with {ended.returncode}, see {pair.log.relative_to(ROOT)}")


def last_match(pair: Pair, pattern: str) -> str | None:
    found = re.findall(pattern, pair.log.read_text(errors="replace"))
    return str(found[-1]).strip() if found else None


if __name__ == "__main__":
    sys.exit(main())
