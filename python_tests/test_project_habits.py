"""What the documents of the project itself say: version, citation, forms, targets, paths."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

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


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of .ci as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@in_the_repository
def test_the_matrix_has_a_line_for_each_pair_and_skips_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = script("matrix", monkeypatch)
    assert all((ROOT / name).is_file() for name in matrix.FEW)
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--python", "3.98", "3.99", "--torch", "2.11"])
    assert matrix.main() == 0
    skipped = "torch 2.11  skipped: there is no Python"
    lines = [f"python 3.9{n}  {skipped} 3.9{n} on this machine" for n in (8, 9)]
    assert capsys.readouterr().out.strip().splitlines()[-2:] == lines


@in_the_repository
def test_the_matrix_says_how_far_a_pair_came(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    matrix = script("matrix", monkeypatch)
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "copy_tree", lambda pair: tmp_path)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    pair = matrix.Pair(here, "2.11")

    def outcome(*programs: str) -> tuple[str, bool]:
        """Of a pair whose stages are these programs."""
        codes = iter(programs)

        def stage(pair: object, name: str, *_: object, **__: object) -> None:
            run(pair, name, ["sh", "-c", next(codes)], tmp_path)

        monkeypatch.setattr(matrix, "stage", stage)
        return matrix.examine(pair, "few", True)

    run = matrix.stage
    fine, wrong = "true", "exit 3"
    log = f"see python{here}-torch2.11/log.txt"
    for reason in (
        "No matching distribution found for torch==2.11.*",
        "Cannot install torch==2.11.* because these package versions conflict.",
    ):
        missing = f"echo 'ERROR: {reason}'; exit 1"
        assert outcome(fine, fine, missing) == (f"skipped: {reason}", False)
    assert outcome(fine, fine, wrong) == (f"then: packages ended with 3, {log}", True)
    assert outcome(fine, fine, fine, wrong) == (
        f"installed, then: pip install ended with 3, {log}",
        True,
    )
    assert outcome(*[fine] * 5, wrong) == (
        f"installed, built, then: pytest ended with 3, {log}",
        True,
    )
    text, failed = outcome(*[fine] * 5, "echo 12 passed, 1 skipped in 2.5s")
    assert text.startswith("installed, built, passed: 12 passed, 1 skipped in 2.5s; ")
    assert not failed


@in_the_repository
def test_a_version_without_a_section_is_not_released(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release = script("release", monkeypatch)
    assert release.described_version() == cac_ext.__version__
    monkeypatch.setattr(release, "ROOT", tmp_path)
    (tmp_path / "cac_ext").mkdir()
    (tmp_path / "cac_ext" / "_version.py").write_text('__version__ = "9.9"')
    (tmp_path / "CHANGELOG.md").write_text((ROOT / "CHANGELOG.md").read_text())
    with pytest.raises(release.ReleaseError, match=r"no section \[9\.9\], but"):
        release.described_version()
