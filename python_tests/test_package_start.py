"""Starting: `import cac_ext` loads the operators; the command's help needs none of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "torchvision", "numpy", "matplotlib", "torchmetrics", "scipy", "cac_ext._C"}
#: What the package's installer writes.
SCRIPT = "import sys\nfrom cac_ext.train.cli.main import main\nsys.exit(main())\n"


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "cac-ext"
    path.write_text(SCRIPT)
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def imported_by(*arguments: str | Path) -> set[str]:
    """The modules that a successful Python command imports."""
    done = run("-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["weak", "train-classifier", "--help"],
        ["config", "--explain"],
        ["config", "voc"],
        ["tables", "table3"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("way", ["script", "module"])
def test_what_needs_no_network_imports_no_torch(arguments, way, script):
    start = [script] if way == "script" else ["-m", "cac_ext.train"]
    imported = imported_by(*start, *arguments)
    assert "cac_ext.train.cli.main" in imported
    assert not HEAVY & imported


def test_a_typing_error_is_reported_without_torch(script):
    done = run("-X", "importtime", script, "train", "synthetik")
    assert done.returncode == 2
    assert "did you mean 'synthetic'?" in done.stderr
    assert " torch\n" not in done.stderr


def test_importing_the_package_registers_the_operators():
    code = "import cac_ext, torch; torch.ops.cac_ext.masked_logsumexp"
    assert "cac_ext._C" in imported_by("-c", code)


def test_in_the_command_the_first_name_loads_the_package(tmp_path):
    script = tmp_path / "cac-ext"
    script.write_text(
        "import sys, cac_ext, cac_ext.build_info\n"
        "from cac_ext import directional_contrastive_loss\n"
        "import torch\n"
        "torch.ops.cac_ext.masked_logsumexp\n"
        "assert callable(cac_ext.build_info)\n"
        "for name in cac_ext.__all__: getattr(cac_ext, name)\n"
        "try: cac_ext.nothing\n"
        "except AttributeError: pass\n"
        "else: raise AssertionError\n"
    )
    done = run(script)
    assert done.returncode == 0, done.stderr
