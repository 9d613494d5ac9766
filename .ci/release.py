"""A rehearsal of a release: builds what would be uploaded, looks it over, and tries it.

    make release                                      # or .ci/release.py, with the packages below
    CAC_CUDA=OFF make release                         # no wheel with CUDA kernels
    make release RELEASE=--share-packages             # quick: dependencies of this environment

1. The version in `cac_ext/_version.py` has a section in CHANGELOG.md.
2. `dist/` receives the sdist and, built from it, a wheel for the CPU and one with CUDA kernels if
   nvcc is found. The sdist holds files of the repository alone.
3. `twine check --strict` and `auditwheel show` pass.
4. Each wheel is installed into a clean environment outside of the tree; `python -m cac_ext` and a
   training of a few steps run there.
5. The last lines say what to upload, and where. Nothing is uploaded.

Needs the dependency groups `build` and `release` of pyproject.toml.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
#: A training of four steps.
TINY = (
    "device=cpu",
    "network.width=16",
    "augment.crop_size=33",
    "data.synthetic.image_size=48",
    "data.synthetic.labelled=6",
    "data.synthetic.unlabelled=10",
    "data.synthetic.validation=4",
    "schedule.epochs=2",
    "schedule.iterations_per_epoch=2",
    "schedule.warmup_epochs=1",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
)
#: Files that setuptools adds to an sdist.
GENERATED = ("PKG-INFO", "setup.cfg", "cac_ext.egg-info")


class ReleaseError(Exception):
    """What keeps the release from being made."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--share-packages",
        action="store_true",
        help="the clean environment uses the packages of this one, and installs the wheel alone",
    )
    arguments = parser.parse_args()
    try:
        version = described_version()
        shutil.rmtree(DIST, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="cac_ext-release-") as folder:
            sdist = build_sdist()
            wheels = build_wheels(sdist, Path(folder))
            look_over([sdist, *wheels.values()])
            for variant, wheel in wheels.items():
                try_out(wheel, Path(folder) / variant, arguments.share_packages)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        print(f"\nno release: {error}", file=sys.stderr)
        return 1
    print_uploads(version, sdist, wheels)
    return 0


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run([*command], check=True, cwd=ROOT, env={**os.environ, **environment})


def described_version() -> str:
    step("version")
    (version,) = re.findall(r'"(.+)"', (ROOT / "cac_ext" / "_version.py").read_text())
    sections = re.findall(r"^## \[(.+?)\] - (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    dates = dict(sections)
    if version not in dates:
        raise ReleaseError(
            f"CHANGELOG.md has no section [{version}], but {', '.join(dates) or 'none'}: describe "
            "the version that cac_ext/_version.py names"
        )
    print(f"cac_ext {version}, {dates[version]} in CHANGELOG.md")
    return version


def build_sdist() -> Path:
    step("sdist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", DIST, ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        print("not a git repository: the files of the sdist are not compared with it")
        return sdist
    known = set(listed.stdout.splitlines())
    with tarfile.open(sdist) as archive:
        names = [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]
    strange = [n for n in names if n not in known and not n.startswith(GENERATED)]
    if strange:
        raise ReleaseError(f"the sdist holds files that git does not know: {', '.join(strange)}")
    print(f"{len(names)} files, all of them known to git")
    return sdist


def build_wheels(sdist: Path, folder: Path) -> dict[str, Path]:
    """A wheel for the CPU, and one with CUDA kernels if nvcc is found, by variant."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    minor = ".".join(torch.__version__.split(".")[:2])
    variants = {f"torch{minor}-cpu": "OFF"}
    if os.environ.get("CAC_CUDA") != "OFF" and torch.version.cuda and shutil.which("nvcc"):
        variants[f"torch{minor}-cu{torch.version.cuda.replace('.', '')}"] = "ON"
    wheels = {}
    for variant, cuda in variants.items():
        step(f"wheel {variant}")
        command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", source)
        run(*command, "--outdir", DIST / variant, CAC_CUDA=cuda)
        (wheels[variant],) = (DIST / variant).glob("*.whl")
    if len(variants) == 1:
        print("no wheel with CUDA: CAC_CUDA is OFF, torch has no CUDA, or there is no nvcc")
    return wheels


def look_over(packages: list[Path]) -> None:
    step("twine check")
    run(sys.executable, "-m", "twine", "check", "--strict", *packages)
    for wheel in packages:
        if wheel.suffix == ".whl" and sys.platform == "linux":
            step(f"auditwheel show {wheel.name}")
            run(sys.executable, "-m", "auditwheel", "show", wheel)


def try_out(wheel: Path, folder: Path, share_packages: bool) -> None:
    step(f"{wheel.name} in a clean environment")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    scripts = folder / "venv" / "bin"
    python = scripts / "python"
    wanted: list[str | Path] = ["--no-deps", wheel]
    if share_packages:
        purelib = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        # They come behind the environment's own; .pth files in their folders, as of an editable
        # install, are not read.
        folders = [x for x in sys.path if x.endswith(("site-packages", "dist-packages"))]
        (Path(purelib) / "shared.pth").write_text("\n".join(folders))
    else:
        wanted = [f"torch=={torch.__version__.partition('+')[0]}", f"{wheel}[train]"]
    run_outside(folder, python, "-m", "pip", "install", "--quiet", *wanted)
    run_outside(folder, python, "-c", "import cac_ext, sys; assert sys.prefix in cac_ext.__file__")
    run_outside(folder, python, "-m", "cac_ext")
    tiny = [*TINY, f"output={folder / 'runs'}"]
    run_outside(folder, scripts / "cac-ext", "train", "synthetic", *tiny)


def run_outside(folder: Path, *command: str | Path) -> None:
    """Runs a command that must not see the tree."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([*command], check=True, cwd=folder, env=environment)


def print_uploads(version: str, sdist: Path, wheels: Mapping[str, Path]) -> None:
    step(f"to upload as {version}")
    for package in (sdist, *wheels.values()):
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        size = package.stat().st_size / 2**20
        print(f"{package.relative_to(ROOT)}  {size:.1f} MiB  sha256 {digest}")
    print(
        f"\nPackage index: twine upload {sdist.relative_to(ROOT)}\n"
        "Page of the release: the wheels, by folder. Each fits one minor version of torch and one "
        "of Python.\nAn index takes none of them: it refuses the tag linux_x86_64, and a wheel's "
        "name cannot say for\nwhich torch it is. (`auditwheel repair` would have to leave out "
        "torch's libraries, by --exclude.)"
    )


if __name__ == "__main__":
    sys.exit(main())
