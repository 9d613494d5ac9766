"""Thin driver: CMake builds the extension (CMakeLists.txt is the one build truth)."""

from __future__ import annotations

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
            ]
        )
        run(["cmake", "--build", str(build_dir), "-j", jobs])
        run(["cmake", "--install", str(build_dir)])

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
