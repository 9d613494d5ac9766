"""Dependencies point one way: train -> loss -> ops -> csrc/ops -> csrc/kernels, never back."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cac_ext"

#: Layers of the package, lowest first; a module may import its own layer and those below.
LAYERS = [
    {"_version", "_C"},
    {"_load"},
    {"ops", "build_info", "_arguments"},
    {"contrast_ops", "negatives"},
    {"_calls"},
    {"functional", "masked", "supervised"},
    {"loss"},
    {"reference"},  # above what it judges: nothing that computes for a user may import it
    {"_public"},
    {"__init__"},
    {"diagnosis"},
    {"__main__"},
    {"train"},
]


def layer(module: str) -> int:
    (found,) = [i for i, modules in enumerate(LAYERS) if module in modules]
    return found


def imports_of(path: Path) -> set[str]:
    """First component below cac_ext of everything that a file imports from the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "cac_ext":
                inside = parts[1] if len(parts) > 1 else "__init__"
                known = (PACKAGE / inside).is_dir() or (PACKAGE / f"{inside}.py").exists()
                found.add(inside if known or inside == "_C" else "__init__")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_python_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for imported in imports_of(path):
        assert layer(imported) <= layer(own), f"{path} imports cac_ext.{imported}"


def test_importing_the_loss_needs_torch_and_numpy_only():
    below_train = list(PACKAGE.glob("*.py"))
    allowed = {"cac_ext", "torch", "numpy"} | sys.stdlib_module_names
    for path in below_train:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, path


def test_training_reaches_the_loss_through_its_public_names():
    public = set(ast.literal_eval(re.search(
        r"__all__ = (\[.*?\])", (PACKAGE / "__init__.py").read_text(), re.S
    ).group(1)))  # fmt: skip
    for path in (PACKAGE / "train").rglob("*.py"):
        text = path.read_text()
        for name in re.findall(r"\bcac_ext\.(\w+)", text):
            assert name in public | {"train", "configs"}, f"{path} uses cac_ext.{name}"


#: Rooms of the trainer, lowest first; a module imports its own room and those below.
ROOMS = [
    {"errors"},
    {"config"},
    {"runtime"},
    {"networks"},
    {"data"},
    {"preflight", "windows", "inference", "evaluate"},
    {"figures"},
    {"runs"},
    {"pseudo_labels"},
    {"optimizer"},
    {"methods"},
    {"batch_streams", "step"},
    {"loop"},
    {"experiments"},
    {"reports"},
    {"api"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]


def room(module: str) -> int:
    (found,) = [i for i, modules in enumerate(ROOMS) if module in modules]
    return found


@pytest.mark.parametrize(
    "path",
    sorted((PACKAGE / "train").rglob("*.py")),
    ids=lambda p: ".".join(p.relative_to(PACKAGE / "train").with_suffix("").parts),
)
def test_the_trainer_s_imports_point_down(path):
    own = path.relative_to(PACKAGE / "train").parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module.startswith("cac_ext.train"):
            continue
        inside = node.module.split(".")[2:]
        for imported in inside[:1] or [alias.name for alias in node.names]:
            assert room(imported) <= room(own), f"{path} imports {node.module}"


def test_the_map_of_the_trainer_names_every_room():
    text = ast.get_docstring(ast.parse((PACKAGE / "train" / "__init__.py").read_text()))
    named = set(re.findall(r"\b(\w+\.py|\w+/)", text))
    there = {p.name for p in (PACKAGE / "train").glob("*.py") if not p.name.startswith("__")}
    there |= {f"{p.parent.name}/" for p in (PACKAGE / "train").glob("*/__init__.py")}
    assert there <= named, f"missing: {sorted(there - named)}"
    gone = {name for name in named if not (PACKAGE / "train" / name).exists()}
    assert gone <= {"cac_ext/", "configs/", "seeding.py"}, f"not there: {sorted(gone)}"


def includes_of(path: Path) -> list[str]:
    return re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())


def sources(folder: str) -> list[Path]:
    return [
        p for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}
    ]


def test_kernels_know_nothing_of_torch_or_of_operators():
    assert sources("kernels")
    for path in sources("kernels"):
        for include in includes_of(path):
            assert not include.startswith(("ATen", "c10", "torch", "pybind11", "ops/", "Python")), (
                f"{path} includes {include}"
            )


def test_operators_include_nothing_above_them():
    assert sources("ops")
    for path in sources("ops"):
        for include in includes_of(path):
            if "/" in include and (ROOT / "csrc" / include).exists():
                assert include.startswith(("ops/", "kernels/")), f"{path} includes {include}"


def test_files_stay_readable():
    tracked = [*PACKAGE.rglob("*.py"), *sources("ops"), *sources("kernels")]
    long = {p.name: n for p in tracked if (n := len(p.read_text().splitlines())) > 500}
    assert not long
