"""The figures in the README are those of the committed result files."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_benchmarks_results import make_results

from benchmarks.__main__ import main
from benchmarks.readme import updated
from benchmarks.results import Results

README = Path(__file__).parent.parent / "README.md"


def test_readme_figures_are_those_of_the_result_files() -> None:
    if not README.exists():
        pytest.skip("no README beside the tests")
    assert updated(README) == README.read_text(encoding="utf-8"), (
        "run: python -m benchmarks readme README.md"
    )


def test_a_changed_figure_is_noticed_and_put_right(tmp_path: Path, seed: int) -> None:
    make_results(seed).save(tmp_path / "a.json")
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- benchmark: a.json case=n-1000 -->\n<!-- end benchmark -->\n")
    assert main(["readme", str(document), "--check"]) == 1
    assert main(["readme", str(document)]) == 0
    assert main(["readme", str(document), "--check"]) == 0
    text = document.read_text()
    median = Results.load(tmp_path / "a.json").find("n-1000", "ours", "float32", "both").median
    assert f"| ours | fp32 | {1e3 * median:.3g} ms |" in text
    assert text.startswith("before\n")
    document.write_text(text.replace("| fp32 |", "| bf16 |"))
    assert main(["readme", str(document), "--check"]) == 1


def test_a_series_in_n_has_a_row_for_each_n(tmp_path: Path, seed: int) -> None:
    make_results(seed).save(tmp_path / "a.json")
    document = tmp_path / "doc.md"
    document.write_text("<!-- benchmark: a.json scaling -->\n<!-- end benchmark -->\n")
    assert main(["readme", str(document)]) == 0
    text = document.read_text()
    row = Results.load(tmp_path / "a.json").find("n-16000", "ours", "float32", "both")
    assert "| N | official fp32 | ours fp32 |" in text
    assert [line.split(" | ")[0] for line in text.splitlines() if line[:3] in ("| 1", "| 4")] == [
        "| 1,000",
        "| 4,000",
        "| 16,000",
    ]
    assert f"{1e3 * row.median:.3g} ms, 16 MiB |" in text
