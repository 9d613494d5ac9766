"""Builds report their versions, a mismatch says what to do, and the packages are complete."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import cac_ext
from cac_ext._load import check_torch_version

ROOT = Path(__file__).resolve().parent.parent
#: What an sdist holds: sources, tests, benchmarks without results, and what setuptools adds.
SDIST = {"cac_ext", "csrc", "python_tests", "benchmarks", "examples"}
SDIST |= {
    "CMakeLists.txt",
    "MANIFEST.in",
    "Makefile",
    "pyproject.toml",
    "setup.py",
    ".clang-format",
}
SDIST |= {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"}
SDIST |= {"PKG-INFO", "cac_ext.egg-info", "setup.cfg"}


def test_build_info_reports_what_runs():
    info = cac_ext.build_info()
    assert info["version"] == cac_ext.__version__
    assert info["torch_running"] == torch.__version__
    assert info["torch_built"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["cpu_capability"] in info["cpu_capabilities"]
    assert info["cpu_capabilities"][0] == "portable"
    assert info["cuda"] == bool(info["cuda_architectures"])


def test_another_torch_is_one_clear_sentence():
    with pytest.raises(ImportError) as error:
        check_torch_version("2.13.0+cpu", "2.14.1")
    message = str(error.value)
    assert "built against torch 2.13.0+cpu" in message
    assert "torch 2.14.1 is running" in message
    assert "pip install --no-build-isolation" in message
    assert "\n" not in message


def test_a_patch_release_of_torch_is_accepted():
    check_torch_version("2.14.1+cu130", "2.14.0+cpu")


@pytest.mark.parametrize("openmp", [True, False])
def test_a_compiler_without_openmp_is_not_asked_for_it(openmp: bool, tmp_path: Path):
    """Such as Apple's, which stops at the flag."""
    compiler = tmp_path / "c++"
    refuse = "" if openmp else 'case " $* " in *" -fopenmp "*) exit 1;; esac\n'
    compiler.write_text(f'#!/bin/sh\n{refuse}exec c++ "$@"\n')
    compiler.chmod(0o755)
    scripts = str(Path(sys.executable).parent)
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Ninja"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", "-DCAC_CUDA=OFF"]
    command += [f"-DCMAKE_CXX_COMPILER={compiler}"]
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert ("-fopenmp" in (tmp_path / "build/compile_commands.json").read_text()) == openmp


def build(kind: str, source: Path, target: Path) -> Path:
    code = f"from setuptools.build_meta import build_{kind} as b; print(b({str(target)!r}))"
    # Without CUDA, which would take minutes and has its own test.
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, "CAC_CUDA": "OFF"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return target / result.stdout.strip().splitlines()[-1]


def metadata_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def test_the_sdist_holds_all_sources_and_builds_a_wheel_that_holds_none(tmp_path):
    sdist = build("sdist", ROOT, tmp_path)
    with tarfile.open(sdist) as archive:
        (info,) = (
            m
            for m in archive.getmembers()
            if m.name.count("/") == 1 and m.name.endswith("/PKG-INFO")
        )
        # Sources fit any torch that is new enough, a wheel only one minor version.
        assert "Requires-Dist: torch>=2.11\n" in archive.extractfile(info).read().decode()
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (p for p in tmp_path.iterdir() if p.is_dir())
    for path in (ROOT / "csrc").rglob("*.*"):
        assert (unpacked / path.relative_to(ROOT)).exists(), path
    assert {path.name for path in unpacked.iterdir()} == SDIST
    assert not (unpacked / "benchmarks" / "results").exists()
    built = build("wheel", unpacked, tmp_path)
    minor = ".".join(torch.__version__.split(".")[:2])
    assert f"Requires-Dist: torch=={minor}.*\n" in metadata_of(built)
    with zipfile.ZipFile(built) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert not [n for n in names if n.endswith((".cpp", ".h", ".cu", ".cuh"))]
    assert not [n for n in names if not n.startswith(("cac_ext/", "cac_ext-"))]
    assert {"cac_ext/build_config.json", "cac_ext/configs/synthetic.yaml"} <= {*names}
    assert {f"cac_ext/train/reports/{name}" for name in ("page.html", "style.css")} <= {*names}
    code = "import cac_ext; print(cac_ext.__file__)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in loaded.stdout

    # A second build compiles only the changed source and omits the removed module.
    (objects,) = unpacked.glob("build/torch-*")
    before = {path: path.stat().st_mtime_ns for path in objects.rglob("*.o")}
    (unpacked / "csrc/ops/checks.cpp").touch()
    (unpacked / "cac_ext/loss.py").rename(unpacked / "cac_ext/renamed.py")
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path)) as wheel:
        assert "cac_ext/renamed.py" in wheel.namelist()
        assert "cac_ext/loss.py" not in wheel.namelist()
    compiled = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert compiled == ["checks.cpp.o"]
