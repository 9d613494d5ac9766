"""Dependencies between the rooms of benchmarks/ point one way: downwards."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

#: Rooms, lowest first; a module imports its own room and those below. The questions stand side by
#: side: none imports another.
ROOMS = [
    {"errors"},
    {"arguments"},
    {"cases"},
    {"operations"},
    {"implementations"},
    {"measure"},
    {"loss", "step", "data", "convergence", "trainings"},
    {"documents"},
    {"__main__"},
]
#: Rooms that run without the packages of the trainer.
WITHOUT_TRAINER = {"errors", "arguments", "cases", "operations", "implementations", "measure"}
WITHOUT_TRAINER |= {"loss", "documents", "__main__"}

FILES = sorted(BENCHMARKS.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(BENCHMARKS).with_suffix("").parts)


def room_of(path: Path) -> str:
    return path.relative_to(BENCHMARKS).parts[0].removesuffix(".py")


def level(room: str) -> int:
    (found,) = [i for i, rooms in enumerate(ROOMS) if room in rooms]
    return found


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = room_of(path)
    for name in imports_of(path):
        if name.startswith("benchmarks."):
            other = name.split(".")[1]
            lower = other == own or level(other) < level(own)
            assert lower, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if room_of(path) in WITHOUT_TRAINER], ids=name_of
)
def test_only_whole_trainings_need_the_trainer(path: Path) -> None:
    allowed = ("cac_ext.train.runtime.", "cac_ext.train.errors.")
    for name in imports_of(path):
        if name.startswith("cac_ext.train"):
            assert name.startswith(allowed), f"{name_of(path)} imports {name}"


def test_nothing_lies_outside_the_rooms() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms == set().union(*ROOMS)


def test_the_map_names_every_room_in_this_order() -> None:
    text = ast.get_docstring(ast.parse((BENCHMARKS / "__init__.py").read_text(encoding="utf-8")))
    named = [name.rstrip("/").removesuffix(".py") for name in re.findall(r"\w+\.py|\w+/", text)]
    assert set(named) == set().union(*ROOMS)
    assert [level(name) for name in named] == sorted(level(name) for name in named)


def test_every_command_is_a_module() -> None:
    from benchmarks.__main__ import COMMANDS

    for command in COMMANDS.values():
        path = BENCHMARKS.joinpath(*command.module.split(".")[1:]).with_suffix(".py")
        defined = {
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        assert {"add_arguments", "run"} <= defined, command.module


def test_files_stay_readable() -> None:
    long = {name_of(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
