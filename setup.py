"""Thin driver: CMake builds the extension (CMakeLists.txt is the one build truth)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'"(.+)"', (ROOT / "cac_ext" / "_version.py").read_text()).group(1)


class CMakeBuild(build_ext):
    """Configure, build and install into the package's folder of the wheel (or of the tree)."""

    def build_extension(self, ext: Extension) -> None:
        package_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = Path(self.build_temp).resolve()
        # Objects compiled against another torch or Python must not be linked again.
        shutil.rmtree(build_dir, ignore_errors=True)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.check_call(
            [
                "cmake",
                *("-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCMAKE_INSTALL_PREFIX={package_dir}",
            ]
        )
        subprocess.check_call(["cmake", "--build", str(build_dir), "-j", jobs])
        subprocess.check_call(["cmake", "--install", str(build_dir)])

    def copy_extensions_to_source(self) -> None:
        """For editable installs: setuptools knows of the module only, not of what lies beside."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            built = Path(self.build_lib, *ext.name.split(".")[:-1], "build_config.json")
            shutil.copy(built, ROOT / "cac_ext" / built.name)


setup(
    version=VERSION,
    packages=find_packages(include=["cac_ext", "cac_ext.*"]),
    package_data={"cac_ext": ["configs/*.yaml"]},
    ext_modules=[Extension("cac_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
