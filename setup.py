"""Runs CMake, which builds the extension as CMakeLists.txt describes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
(VERSION,) = re.findall(r'"(.+)"', (ROOT / "cac_ext" / "_version.py").read_text())
#: CMake reads these only when it first configures a folder.
COMPILER_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CUDACXX", "CUDAFLAGS", "LDFLAGS")


class FreshBuildPy(build_py):
    """Removes the modules of earlier builds first: a wheel holds exactly those of the tree."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures, builds and installs into the package folder of the wheel (or of the tree)."""

    def build_extension(self, ext: Extension) -> None:
        package_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = build_folder()
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        # cmake and ninja from this environment are found even if it is not activated.
        scripts = sysconfig.get_path("scripts")
        environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
        run = partial(subprocess.check_call, env=environment)
        run(
            [
                "cmake",
                *("-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCMAKE_INSTALL_PREFIX={package_dir}",
                # Set each time, because CMake's cache keeps the choice of an earlier build.
                f"-DCAC_CUDA={os.environ.get('CAC_CUDA', 'AUTO')}",
            ]
        )
        run(["cmake", "--build", str(build_dir), "-j", jobs])
        run(["cmake", "--install", str(build_dir)])

    def copy_extensions_to_source(self) -> None:
        """For editable installs: setuptools copies the module, this build_config.json too."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            built = Path(self.build_lib, *ext.name.split(".")[:-1], "build_config.json")
            shutil.copy(built, ROOT / "cac_ext" / built.name)


def build_folder() -> Path:
    """The folder that keeps objects between builds, so that one change compiles one file.

    Objects for another torch, another Python or another compiler must never be linked together, so
    each combination has a separate folder.
    """
    import torch

    compiler = "".join(f"{name}={os.environ.get(name, '')};" for name in COMPILER_VARIABLES)
    digest = hashlib.sha256(compiler.encode()).hexdigest()[:8]
    python = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return ROOT / "build" / f"torch-{torch.__version__}-{python}-{digest}"


def dependencies() -> list[str]:
    """The requirements: any recent torch for sources, the same minor version for built packages.

    torch promises no stable C++ interface between minor versions.
    """
    if {"bdist_wheel", "editable_wheel", "dist_info"}.isdisjoint(sys.argv):
        return ["torch>=2.11", "numpy"]
    import torch

    major, minor = torch.__version__.split(".")[:2]
    return [f"torch=={major}.{minor}.*", "numpy"]


setup(
    version=VERSION,
    install_requires=dependencies(),
    packages=find_packages(include=["cac_ext", "cac_ext.*"]),
    package_data={
        "cac_ext": ["configs/*.yaml", "py.typed", "_C.pyi"],
        "cac_ext.train.reports": ["page.html", "style.css"],
    },
    ext_modules=[Extension("cac_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuildPy},
)
