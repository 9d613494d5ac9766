"""Every command of the README is run: here with small settings, or by the test that is named."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import TINY_RUN

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")

ROOT = Path(__file__).resolve().parent.parent
MAKE = re.compile(r"^(?:CAC_CUDA=OFF )?make ([a-z-]+)")
QUICK_LOSS = ["--implementations", "ours:float32", "--no-memory", "--time-budget", "20"]
#: What is added to a command, so that it takes seconds, by its first words.
ADDED = {
    "cac-ext train": [*TINY_RUN, "--folder", "run"],
    "cac-ext compare": [*TINY_RUN, "--folder", "runs"],
    "python -m benchmarks loss": ["--cases", "quick", *QUICK_LOSS],
}
#: Commands that install or test, and what runs them instead.
ELSEWHERE = {
    "make test": "this is it",
    "pip install torch torchvision": "`make` does so before it runs this",
    "pip install pybind11 ninja cmake 'setuptools>=77' wheel numpy": "the same",
    'pip install --no-build-isolation ".[train]"': "test_package_build.py builds a wheel",
}


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    text = text.partition("## Map of the tree")[0]
    lines = re.findall(r"^    ((?:make|cac-ext|python|pip) .*?)(?:  +#.*)?$", text, re.M)
    inline = re.findall(r"`((?:CAC_CUDA=OFF )?(?:make|cac-ext|python -m)\s[^`]*)`", text)
    return sorted({" ".join(found.split()) for found in [*lines, *inline]})


def recipe(target: str) -> str:
    """The last command of a target of the Makefile."""
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", target],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.strip().splitlines()[-1].replace(".venv/bin/", "")


def test_the_readme_names_commands():
    found = commands()
    assert {"make train", "make test", "python -m cac_ext", "cac-ext --help"} <= set(found)
    assert set(ELSEWHERE) <= set(found), "a command that the README no longer names"


@pytest.mark.parametrize("command", commands())
def test_the_command_runs(command: str, tmp_path: Path) -> None:
    if command in ELSEWHERE:
        return
    target = MAKE.match(command)
    if target is not None:
        command = recipe(target.group(1))
    if "RUN..." in command:
        run("cac-ext train synthetic", tmp_path)
    given = {"CONFIG": "synthetic", "[key=value ...]": "", "RUN...": "run"}
    for placeholder, value in given.items():
        command = command.replace(placeholder, value)
    run(command, tmp_path)


def run(command: str, folder: Path) -> None:
    words = shlex.split(command)
    for beginning, more in ADDED.items():
        if command.startswith(beginning):
            words += more
    script = {"cac-ext": ["-m", "cac_ext.train"], "python": []}[words[0]]
    result = subprocess.run(
        [sys.executable, *script, *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{words}:\n{result.stdout}\n{result.stderr}"
