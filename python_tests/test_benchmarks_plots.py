"""Figures are drawn of the rows they name and claim no limit that was not measured."""

from __future__ import annotations

import dataclasses

import pytest
from test_benchmarks_results import make_results

pytest.importorskip("matplotlib")

from benchmarks import plots


def test_the_title_names_the_anchors_of_the_series_drawn(seed: int) -> None:
    results = make_results(seed)
    results.cases["larger"] = {**results.cases["n-1000"], "name": "larger", "A": 25_600}
    row = results.find("n-1000", "ours", "float32", "both")
    results.rows.append(dataclasses.replace(row, case="larger"))
    (axes,) = plots.time_against_n(results).axes
    assert axes.get_title() == "Loss and gradient, A = 100"
    assert all(len(line.get_xdata()) == 3 for line in axes.lines)


def test_a_rate_above_that_of_torchs_product_contradicts_no_label(seed: int) -> None:
    results = make_results(seed)
    for row in results.rows:
        row.share_of_matrix_rate = 1.43  # float32 as sums of bfloat16 on AMX
    figures = plots.loss_figures(results)
    assert {"share-of-matrix-rate", "rate-over-intensity"} <= figures.keys()
    for figure in figures.values():
        text = plots.to_svg(figure).decode().lower()
        assert "<text" in text  # text stays text
        for claim in ("peak of", "the peak", "limit", "roofline"):
            assert claim not in text
    shares = plots.to_svg(figures["share-of-matrix-rate"]).decode()
    assert "% of torch's matrix-product rate" in shares.replace("&#39;", "'")
