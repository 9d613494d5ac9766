"""The figures in the README are those of the committed result files."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from made_up_results import make_results

from benchmarks.__main__ import main
from benchmarks.documents.readme import updated
from benchmarks.errors import UsageError
from benchmarks.measure.results import Results, Row

ROOT = Path(__file__).parent.parent
README, BENCHMARKS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
METHODS = ROOT / "benchmarks" / "README.md"
BLOCKS = {
    README: ["/loss.json case=voc:official,official-compiled,tiled,ours"],
    BENCHMARKS: [
        "/loss.json case=voc",
        "/loss-scaling.json scaling",
        "/step-resnet50.json step",
        "/step.json largest",
    ],
    METHODS: [
        "/loss-scaling.json exponents",
        "/loss-shapes.json exponents",
        "/loss-scaling.json ranks=step-resnet50.json",
    ],
}


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="needs the repository: an sdist has no docs")
@pytest.mark.parametrize("document", BLOCKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_figures_of_documents_are_those_of_the_result_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for block in BLOCKS[document]:
        assert re.search(rf"^<!-- benchmark: \S+{re.escape(block)} -->$", text, re.M), block
    assert updated(document) == text, f"run: python -m benchmarks readme {document}"


def test_a_document_may_show_some_implementations_alone(tmp_path: Path, seed: int) -> None:
    make_results(seed).save(tmp_path / "a.json")
    document = tmp_path / "a.md"
    block = "<!-- benchmark: a.json case={} -->\n<!-- end benchmark -->\n"
    document.write_text(block.format("n-1000"))
    every = updated(document)
    document.write_text(block.format("n-1000:ours"))
    rows = [line for line in every.splitlines() if line.startswith("| ours |")]
    shown = [line for line in updated(document).splitlines() if line.startswith("| ")][2:]
    assert shown == rows
    assert rows
    document.write_text(block.format("n-1000:theirs"))
    with pytest.raises(UsageError, match=r"no implementation theirs; it has: .*ours"):
        updated(document)


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


def test_sizes_that_fit_are_shown_with_what_is_not_known(tmp_path: Path, seed: int) -> None:
    results = make_results(seed)
    results.settings = {"config": "tiny", "overrides": ["a=1"], "negatives": [5, 700], "batch": 4}
    common = {"budget_bytes": 2**31, "seconds": 10.0}
    results.extra["largest"] = [
        {"loss": "no loss", "what": "batch", "largest": 64, "too_large": 68, **common}
        | {"stopped_by": "memory budget"},
        {"loss": "ours", "what": "negatives", "largest": 4_096, "too_large": 8_192, **common}
        | {"stopped_by": "time budget"},
    ]
    results.save(tmp_path / "a.json")
    document = tmp_path / "doc.md"
    document.write_text("<!-- benchmark: a.json largest -->\n<!-- end benchmark -->\n")
    assert main(["readme", str(document)]) == 0
    text = document.read_text()
    assert "| no loss | 64 | - |" in text
    assert "| ours | - | 4,096 to 8,192 (time budget) |" in text
    assert "in 2.00 GiB; batches with 700 negatives, negatives with a batch of 4" in text


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


def block_of(results: Results, folder: Path, what: str) -> str:
    """The document that the command writes for one block."""
    results.save(folder / "a.json")
    document = folder / "doc.md"
    document.write_text(f"<!-- benchmark: a.json {what} -->\n<!-- end benchmark -->\n")
    assert main(["readme", str(document)]) == 0
    return document.read_text()


def test_footnotes_say_what_a_figure_lacks(tmp_path: Path, seed: int) -> None:
    results = make_results(seed)
    results.machine.update(cpu="A processor", capability="AVX512", instruction_sets=["amx_bf16"])
    plain = block_of(results, tmp_path, "case=n-1000")
    assert "A processor (AVX512 + amx_bf16)" in plain
    assert "\\*" not in plain
    assert "WARNING" not in plain

    results.machine["foreign_load"] = 0.5
    results.find("n-1000", "official", "float32", "both").warmed_up = False
    ours = results.find("n-1000", "ours", "float32", "both")
    half = dataclasses.replace(ours, dtype="bfloat16", samples=ours.samples[:2])
    results.rows += [
        half,
        Row("n-1000", "naive", "float32", "both", "out_of_memory", "the allocator refused"),
    ]
    text = block_of(results, tmp_path, "case=n-1000")
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ") for line in text.splitlines()}
    assert cells["| official", "fp32"][2].endswith("s\\*")
    assert cells["| ours", "bf16"][2].endswith(" ms\\*")
    assert cells["| ours", "bf16"][3].endswith("x\\*\\*")
    assert "*" not in "".join(cells["| ours", "fp32"])
    assert "\\* fewer than 3 timed calls" in text
    assert "\\*\\* against the other's fp32" in text
    assert "No figure of naive fp32 at this case: out of memory, the allocator refused." in text
    assert "WARNING: other programs used 50%" in text


def test_an_empty_cell_of_a_series_is_explained(tmp_path: Path, seed: int) -> None:
    results = make_results(seed)
    for N in (4_000, 16_000):
        row = results.find(f"n-{N}", "official", "float32", "both")
        row.status, row.detail, row.samples = "skipped", "would take about 9 s a run", []
    text = block_of(results, tmp_path, "scaling")
    reason = "skipped, would take about 9 s a run"
    assert f"No figure of official fp32 at 4,000; 16,000: {reason}." in text


def test_a_block_that_cannot_be_read_is_no_text(tmp_path: Path, seed: int, capsys) -> None:
    make_results(seed).save(tmp_path / "a.json")
    document = tmp_path / "doc.md"
    for start, end in (
        ("<!-- benchmark: a.json skaling -->", "<!-- end benchmark -->"),
        ("<!-- benchmark: a.json scaling -->", "<!-- end -->"),
    ):
        document.write_text(f"{start}\n{end}\n")
        assert main(["readme", str(document), "--check"]) == 2
        assert "is not a block" in capsys.readouterr().err
