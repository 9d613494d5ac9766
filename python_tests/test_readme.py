"""The documents: the example runs, figures are those of the committed results, paths exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cac_ext
from cac_ext.train.cli.main import main
from cac_ext.train.config.explain import find_keys

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
#: An sdist has only some documents.
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the repository")
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]


def test_the_example_runs_and_gives_gradients():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    assert names["loss"].item() > 0
    assert names["features1"].grad.abs().sum() > 0


@pytest.mark.parametrize("document", [README, ROOT / "docs" / "benchmarks.md"], ids=str)
def test_the_figures_come_from_committed_results(document):
    command = [sys.executable, "-m", "benchmarks", "readme", "--check", str(document)]
    result = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_three_seeds_are_those_of_the_committed_runs():
    (path,) = re.findall(r"\[results\]\((.*?)\)", README.read_text())
    for record in json.loads((README.parent / path).read_text()):
        name = {"sup_only": "SupOnly", "cac": "CAC (ours)"}[record["method"]]
        (row,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", README.read_text(), re.M)
        assert row.split(" | ")[record["seed"]] == f"{100 * record['miou']:.2f}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_in_the_text_exists(document):
    drawings = re.findall(
        r"^    \"([a-z-]+)\": ", (ROOT / "docs/site/drawings.py").read_text(), re.M
    )
    for path, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", document.read_text()):
        if path.startswith("drawings/"):  # drawn while the site is built
            assert Path(path).stem in drawings, path
        elif not path.startswith("http"):
            target = document.parent / path if path else document
            assert target.exists(), path
            assert not anchor or anchor in anchors_of(target), f"{path}#{anchor}"


def anchors_of(document: Path) -> set[str]:
    """What links call the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    words = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", text) for text in words}


def test_the_map_of_the_tree_names_what_is_there():
    (tree,) = re.findall(r"## Map of the tree\n\n(.*?)\n\n", README.read_text(), re.S)
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        inside = line.startswith("      ")
        path = (folder if inside else ROOT) / name
        assert path.exists(), name
        folder = folder if inside else path


def test_the_documents_give_the_same_accuracy_as_the_docstring():
    """One table, in reStructuredText and in Markdown."""
    docstring = cac_ext.directional_contrastive_loss.__doc__
    in_code = re.findall(r"^ +((?:CPU|CUDA) +b?float.*)$", docstring, re.M)
    in_document = re.findall(
        r"^\| ((?:CPU|CUDA) .*) \|$", (ROOT / "docs/loss.md").read_text(), re.M
    )
    assert in_code
    assert [re.split(r"  +", line) for line in in_code] == [x.split(" | ") for x in in_document]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_exist(document):
    """Every ``cac-ext COMMAND`` in a document, and each ``key=value`` beside ``train``."""
    for line in re.findall(r"(?:cac-ext|cac_ext\.train) (.*)", document.read_text()):
        command = re.match(r"[a-z-]+", line)
        if command is not None and not line.startswith("-"):
            with pytest.raises(SystemExit) as stop:
                main([command.group(), "--help"])
            assert stop.value.code == 0, line
        for key in re.findall(r"(?<=[ `])([a-z]+\.[a-z_.]+)(?==[^=])", line):
            assert key.startswith("method.options.") or find_keys([key]), line
