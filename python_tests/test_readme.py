"""The README's example runs, and its figures are those of the committed results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_runs_and_gives_gradients():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    assert names["loss"].item() > 0
    assert names["features1"].grad.abs().sum() > 0


def test_the_figures_come_from_committed_results():
    command = [sys.executable, "-m", "benchmarks", "readme", "--check", str(README)]
    result = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_three_seeds_are_those_of_the_committed_runs():
    (path,) = re.findall(r"\[results\]\((.*?)\)", README.read_text())
    for record in json.loads((README.parent / path).read_text()):
        name = {"sup_only": "SupOnly", "cac": "CAC (ours)"}[record["method"]]
        (row,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", README.read_text(), re.M)
        assert row.split(" | ")[record["seed"]] == f"{100 * record['miou']:.2f}"


def test_every_path_in_the_text_exists():
    text = README.read_text()
    paths = [p for p in re.findall(r"\]\(([^)#]+)\)", text) if not p.startswith("http")]
    assert paths
    for path in paths:
        assert (README.parent / path).exists(), path
