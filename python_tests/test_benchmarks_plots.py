"""Figures show the rows that they name and claim no limit that was not measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from made_up_results import SIZES, make_results

pytest.importorskip("matplotlib")

from benchmarks.documents import plots
from benchmarks.documents.plots import COLORS
from benchmarks.measure.results import Results, Row


def test_the_title_names_the_anchors_of_the_series_drawn(seed: int) -> None:
    results = make_results(seed)
    results.cases["larger"] = {**results.cases["n-1000"], "name": "larger", "A": 25_600}
    row = results.find("n-1000", "ours", "float32", "both")
    results.rows.append(dataclasses.replace(row, case="larger"))
    (axes,) = plots.time_against_n(results).axes
    assert axes.get_title() == "Loss and gradient, A = 100"
    assert all(len(line.get_xdata()) == 3 for line in axes.lines)


def drawn(figure) -> dict[str, tuple[list, list]]:
    """Label -> horizontal and vertical values of every line of a figure with one pair of axes."""
    (axes,) = figure.axes
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }


def test_time_and_memory_are_drawn_of_every_row(seed: int) -> None:
    results = make_results(seed)
    lines = {"time": drawn(plots.time_against_n(results))}
    lines["memory"] = drawn(plots.memory_against_n(results))
    for name in ("official", "ours"):
        rows = [results.find(f"n-{N}", name, "float32", "both") for N in SIZES]
        times = [row.median for row in rows]
        assert lines["time"][f"{name} fp32"] == (list(SIZES), times)
        memory = [row.extra_memory / 2**20 for row in rows]
        assert lines["memory"][f"{name} fp32"] == (list(SIZES), memory)
    assert all(len(found) == 2 for found in lines.values())


def test_shares_and_rates_are_drawn_of_every_row(seed: int) -> None:
    results = make_results(seed)
    for number, row in enumerate(results.rows):
        row.share_of_matrix_rate = 0.1 + 0.05 * number
    (axes,) = plots.share_of_matrix_rate(results).axes
    heights = {
        bars.get_label(): [bar.get_height() for bar in bars.patches] for bars in axes.containers
    }
    points: dict[str, list] = {"official fp32": [], "ours fp32": []}
    (rate_axes,) = plots.rate_over_intensity(results).axes
    for line in rate_axes.lines[1:]:  # the first one is torch's
        name = next(label for label in points if COLORS[label.split()[0]] == line.get_color())
        points[name].append((*line.get_xdata(), *line.get_ydata()))
    for name in ("official", "ours"):
        rows = [results.find(f"n-{N}", name, "float32", "both") for N in SIZES]
        shares = [100 * row.share_of_matrix_rate for row in rows]
        assert heights[f"{name} fp32"] == pytest.approx(shares)
        wanted = [
            (row.executed_operations / row.compulsory_bytes, row.executed_operations / row.median)
            for row in rows
        ]
        found = [(intensity, 1e9 * rate) for intensity, rate in points[f"{name} fp32"]]
        assert found == [pytest.approx(point) for point in wanted]
    # torch's copy up to the knee, then its product.
    span, rates = rate_axes.lines[0].get_xdata(), rate_axes.lines[0].get_ydata()
    assert (span[1], rates[1], rates[2]) == (10.0, 100.0, 100.0)


def test_steps_are_drawn_against_the_negatives() -> None:
    results = Results.start("step", {}, torch.device("cpu"))
    for negatives, seconds in ((500, 1.0), (19_200, 2.0)):
        case = f"negatives-{negatives}"
        results.cases[case] = {"negatives": negatives, "anchors": 10, "batch": 2}
        for loss, factor in (("ours", 1), ("official", 3)):
            row = Row(case, loss, "float32", "step", samples=[factor * seconds] * 3)
            row.extra_memory = negatives * factor * 2**20
            results.rows.append(row)
    figures = plots.step_figures(results)
    sizes = [500, 19_200]
    assert drawn(figures["step-time"]) == {
        "ours": (sizes, [1.0, 2.0]),
        "official": (sizes, [3.0, 6.0]),
    }
    assert drawn(figures["step-memory"]) == {
        "ours": (sizes, [500, 19_200]),
        "official": (sizes, [1_500, 57_600]),
    }


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
