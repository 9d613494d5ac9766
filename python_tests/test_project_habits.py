"""What the documents of the project itself say: version, citation, forms, targets, paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import cac_ext

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
in_the_repository = pytest.mark.skipif(
    not (ROOT / ".github").is_dir(), reason="needs the repository: an sdist has no forms"
)


def test_the_changelog_describes_this_version() -> None:
    sections = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert cac_ext.__version__ in dict(sections)
    for _, date in sections:
        assert re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", date), date


def test_the_version_stands_in_one_place() -> None:
    places = [ROOT / name for name in ("setup.py", "pyproject.toml", "CITATION.cff", "README.md")]
    places += [ROOT / "CMakeLists.txt", *(ROOT / "cac_ext").glob("*.py")]
    found = [path.name for path in places if cac_ext.__version__ in path.read_text()]
    assert found == ["_version.py"]


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "references"} <= set(citation)
    (paper,) = citation["references"]
    words = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    assert f"*{paper['title']}*" in words
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Lai", "Tian"]
    assert (paper["year"], paper["start"], paper["end"]) == (2021, 1205, 1214)


@in_the_repository
@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_the_page_of_issues_needs(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    names = [field["id"] for field in content["body"]]
    assert len(set(names)) == len(names) > 0
    for field in content["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]


@in_the_repository
def test_a_report_of_a_fault_comes_with_the_diagnosis() -> None:
    fields = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())["body"]
    (diagnosis,) = [f for f in fields if "`python -m cac_ext`" in f["attributes"]["label"]]
    assert diagnosis["validations"] == {"required": True}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_targets_of_make_exist(document: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"(?:^ +|`)make ([a-z-]+)", document.read_text(), re.M):
        assert target in targets, target


@in_the_repository
@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_file_that_is_named_exists(name: str) -> None:
    """Also those in quotation marks; those that a command writes are not among them."""
    text = (ROOT / name).read_text()
    tops = "csrc|cac_ext|python_tests|benchmarks|docs|examples"
    for path in re.findall(rf"\b((?:{tops})/[\w./]+\.(?:py|h|md|sh|cpp))\b", text):
        assert (ROOT / path).is_file(), path
    for test in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "python_tests" / test).is_file(), test
