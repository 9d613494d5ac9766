"""Result files can be read, compared and reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("matplotlib")

from made_up_results import SIZES, make_results
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from benchmarks.__main__ import main
from benchmarks.documents.compare import compare
from benchmarks.documents.plots import COLORS
from benchmarks.documents.report import render_report
from benchmarks.loss.table import loss_table
from benchmarks.measure.results import SCHEMA, Results, Row


def test_a_file_comes_back_as_it_was_written(tmp_path: Path, seed: int) -> None:
    results = make_results(seed)
    results.rows.append(Row("n-1000", "naive", "float32", "both", "out_of_memory", "refused"))
    results.save(tmp_path / "a.json")
    assert Results.load(tmp_path / "a.json") == results
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["schema"] == SCHEMA
    assert {"cpu", "capability", "threads"} <= data["machine"].keys()
    assert {"torch", "cac_ext"} <= data["software"].keys()
    assert data["rows"][0]["p20"] <= data["rows"][0]["median"] <= data["rows"][0]["p80"]


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"other\.json"):
        Results.load(tmp_path / "other.json")


def test_curves_of_an_older_form_are_refused_by_name(tmp_path: Path, capsys) -> None:
    results = Results.start("convergence", {"seed": 0}, torch.device("cpu"))
    results.extra["curves"] = {"reference float64": {"loss": [1.0], "loss_unsupervised": [1.0]}}
    results.save(tmp_path / "old.json")
    assert main(["report", str(tmp_path / "old.json"), "-o", str(tmp_path / "r.html")]) == 2
    assert "old.json is of an older version" in capsys.readouterr().err


def test_compare_flags_a_planted_regression_alone(tmp_path: Path, seed: int, capsys) -> None:
    make_results(seed).save(tmp_path / "a.json")
    make_results(seed + 1, slower=1.3).save(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    flagged = [line for line in capsys.readouterr().out.splitlines() if "slower!" in line]
    assert len(flagged) == 1
    assert flagged[0].startswith(f"n-{SIZES[-1]} ")
    assert "ours" in flagged[0]


def test_compare_takes_noise_for_noise(tmp_path: Path, seed: int) -> None:
    make_results(seed, spread=0.1).save(tmp_path / "a.json")
    make_results(seed + 1, spread=0.1).save(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0


def test_compare_flags_more_memory_and_a_row_that_no_longer_runs(seed: int) -> None:
    before, after = make_results(seed), make_results(seed, more_memory=2**27)
    after.rows[0].status = "failed"
    verdicts = [change.verdict() for change in compare(before, after)]
    assert verdicts[0] == "failed!"
    assert verdicts[1] == "more memory!"


def test_two_calls_are_no_evidence_of_a_small_change(seed: int) -> None:
    before, after = make_results(seed), make_results(seed, slower=1.2)
    for row in (*before.rows, *after.rows):
        row.samples = row.samples[:2]
    assert not any(change.regressed for change in compare(before, after))


def test_the_report_needs_no_other_file(seed: int) -> None:
    page = render_report({"made <up>": make_results(seed)})
    assert page.count("<img") == page.count("data:image/svg+xml;base64,") == 6
    assert "made &lt;up&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|<script|<link|@import|url\(""", page)


def test_report_writes_every_figure_as_png_and_svg(tmp_path: Path, seed: int) -> None:
    make_results(seed).save(tmp_path / "a.json")
    page, plots = tmp_path / "r.html", tmp_path / "plots"
    assert main(["report", str(tmp_path / "a.json"), "-o", str(page), "--plots", str(plots)]) == 0
    assert page.read_text(encoding="utf-8").count("data:image/svg+xml;base64,") == 6
    axes = {  # label of the vertical axis of each figure
        "a-time": "seconds (median)",
        "a-memory": "MiB",
        "a-share-of-matrix-rate": "% of torch's matrix-product rate",
        "a-rate-over-intensity": "executed Gop/s",
        "a-time-laws": "seconds (median)",
        "a-memory-laws": "MiB beyond the inputs",
    }
    names = {path.name for path in plots.iterdir()}
    assert names == {f"{figure}.{kind}" for figure in axes for kind in ("png", "svg")}
    for figure, label in axes.items():
        drawn = ElementTree.parse(plots / f"{figure}.svg")
        texts = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
        assert label in texts
        for name in ("ours fp32", "official fp32"):  # laws add the exponent
            assert any(text.startswith(name) for text in texts)
        pixels = imread(plots / f"{figure}.png")[:, :, :3]
        for name in (
            "ours",
            "official",
        ):  # lines, bars or points in its color
            distance = abs(pixels - to_rgb(COLORS[name])).max(axis=2)
            assert (distance < 0.01).sum() > 100, (figure, name)


def test_the_table_says_when_the_machine_was_busy(seed: int) -> None:
    results = make_results(seed)
    assert "WARNING" not in loss_table(results)
    results.machine["foreign_load"] = 0.5
    assert "WARNING: other programs used 50%" in loss_table(results)
