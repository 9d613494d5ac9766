"""Without training the `bench` extra is enough; a missing package is named with its extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Hides packages as if they were not installed, then runs each command and prints its exit code.
PROGRAM = """
import sys

sys.modules.update(dict.fromkeys({hidden}))  # importing None fails as if it were not installed
from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
import benchmarks.measure.limits as limits

limits._SIZES = {{"cpu": (1e8, 2**20)}}
CASES["tiny"] = [Case("tiny", A=64, N=512, C=16, K=5)]
for words in {commands}:
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    print(" ".join(words), "->", code, flush=True)
"""

TRAIN = {"omegaconf", "torchvision", "torchmetrics", "tensorboard", "sklearn", "safetensors"}
COMMANDS = ("loss", "step", "parts", "data", "convergence", "camvid", "methods", "report")
COMMANDS += ("readme", "compare")


def run_without(hidden: set[str], commands: list[list[str]], folder: Path) -> tuple[dict, str]:
    """Exit code of every command, and the text on standard error."""
    program = PROGRAM.format(hidden=sorted(hidden), commands=commands)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    codes = dict(line.split(" -> ") for line in done.stdout.splitlines() if " -> " in line)
    return codes, done.stderr


def test_loss_compare_readme_report_and_every_help_need_no_package_of_the_trainer(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    loss = ["loss", "--cases", "tiny", "--implementations", "ours:float32", "--no-memory"]
    loss += ["--repeats", "1", "--output", "a.json"]
    block = "<!-- benchmark: a.json case=tiny -->\n<!-- end benchmark -->\n"
    (tmp_path / "doc.md").write_text(block)
    wanted = [loss, ["compare", "a.json", "a.json"], ["readme", "doc.md"], ["report", "a.json"]]
    wanted += [[command, "--help"] for command in COMMANDS]
    training = [["step"], ["parts"], ["data"], ["convergence"], ["methods", "--output", "O"]]
    training.append(["camvid", "--data", "D", "--output", "O"])
    codes, errors = run_without(TRAIN, [*wanted, *training], tmp_path)
    assert {" ".join(words): codes[" ".join(words)] for words in wanted} == {
        " ".join(words): "0" for words in wanted
    }
    assert {codes[" ".join(words)] for words in training} == {"2"}
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(sentences) == len(training)
    assert all('is missing; install it with: pip install ".[train]"' in s for s in sentences)
    assert "Traceback" not in errors


def test_a_package_of_the_bench_extra_is_named_with_it(tmp_path: Path) -> None:
    commands = [["loss"], ["report", "a.json"], ["--help"], ["compare", "--help"]]
    codes, errors = run_without({"tqdm", "matplotlib"}, commands, tmp_path)
    assert codes == {"loss": "2", "report a.json": "2", "--help": "0", "compare --help": "0"}
    assert 'error: tqdm is missing; install it with: pip install ".[bench]"' in errors
    assert 'error: matplotlib is missing; install it with: pip install ".[bench]"' in errors
