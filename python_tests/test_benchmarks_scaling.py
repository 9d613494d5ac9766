"""Fitted laws find planted exponents; the calculation for several processes adds up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import find_cases
from benchmarks.documents.readme import updated
from benchmarks.documents.scaling import exponents_table, ranks_of, ranks_table
from benchmarks.errors import UsageError
from benchmarks.loss.scaling import SIZES, Ranks, fit, line_in_n, points_of, series_in
from benchmarks.measure.records import case_record
from benchmarks.measure.results import Results, Row

PLANTED = {"A": 0.9, "N": 1.02, "C": 0.8, "K": 0.1}


def planted_results(seed: int, noise: float = 0.0) -> Results:
    """Times that follow a product of powers, memory with half of their exponents."""
    generator = np.random.default_rng(seed)
    results = Results.start("loss", {}, torch.device("cpu"))
    for case in find_cases(["quick-scaling", "skew"]):
        results.cases[case.name] = case_record(case)
        law = np.prod([getattr(case, size) ** PLANTED[size] for size in SIZES])
        factor = np.exp(noise * generator.standard_normal())
        row = Row(case.name, "ours", "float32", "both", samples=[1e-9 * float(law * factor)] * 3)
        row.extra_memory = int(1e9 * law**0.5)
        results.rows.append(row)
    results.rows.append(Row(case.name, "naive", "float32", "both", "failed", "not built"))
    return results


@pytest.mark.parametrize("size", SIZES)
def test_planted_exponents_are_found(size, seed):
    results = planted_results(seed)
    assert len(series_in(results, size)) == 3
    for quantity, share in (("time", 1.0), ("memory", 0.5)):
        points = points_of(results, size, quantity, "ours", "float32")
        law = fit(points)
        assert law.exponent == pytest.approx(share * PLANTED[size], abs=1e-6)
        assert law.error < 1e-6
        for at, value in points:
            assert law.at(at) == pytest.approx(value, rel=1e-6)
    assert fit(points_of(results, size, "time", "naive", "float32")) is None


def test_the_error_covers_the_noise(seed):
    """Of many fits with noise, about two thirds lie within one standard error."""
    generator = np.random.default_rng(seed)
    sizes = np.geomspace(100, 10_000, 12)
    within = 0
    for _ in range(300):
        values = sizes**0.7 * np.exp(0.1 * generator.standard_normal(len(sizes)))
        law = fit(list(zip(sizes, values, strict=True)))
        within += abs(law.exponent - 0.7) < law.error
    assert 0.55 < within / 300 < 0.77


def test_quick_cases_are_measured_by_their_name_alone():
    assert len(find_cases(["quick-scaling"])) == 9
    assert not [case for case in find_cases(["all"]) if case.name.startswith("quick")]


def test_two_sizes_give_no_exponent():
    assert fit([(10, 1.0), (20, 2.0)]) is None
    assert fit([(10, 1.0), (10, 1.1), (20, 2.0)]) is None
    assert fit([]) is None


def test_the_line_in_n_finds_both_constants():
    fixed, each = line_in_n([(n, 0.02 + 3e-6 * n) for n in (1_000, 50_000, 1_000_000)])
    assert (fixed, each) == (pytest.approx(0.02), pytest.approx(3e-6))


def ranks(**changes: float) -> Ranks:
    given = {"images": 4, "anchors": 100, "rows": 10, "steps": 2, "channels": 31, "network": 1.0}
    given |= {"fixed": 0.5, "per_negative": 0.01, "bandwidth": 1280.0}
    return Ranks(**(given | changes))


def test_the_calculation_adds_up():
    of = ranks()
    assert of.row_bytes == 128
    assert [of.negatives(r) for r in (1, 3)] == [20, 60]
    assert [of.gathered_bytes(r) for r in (1, 3)] == [0, 2 * 10 * 128]
    assert of.gathered_bytes(3, in_chunks=True) == 2 * of.gathered_bytes(3)
    assert of.gather(3) == pytest.approx(2.0)
    assert of.loss(3) == pytest.approx(0.5 + 0.6)
    assert of.step(3) == pytest.approx(1.0 + 1.1 + 2.0)
    assert of.step(3, in_chunks=True) == pytest.approx(of.step(3) + 2.0)
    assert of.efficiency(1) == 1
    assert of.efficiency(3) == pytest.approx(1.7 / 4.1)


@pytest.mark.parametrize("network", [0.1, 1.0, 70.0])
def test_at_most_so_many_processes_do_half_the_work_of_one(network):
    of = ranks(network=network)
    assert of.efficiency(of.most()) >= 0.5 - 1e-9
    assert of.efficiency(of.most() + 1) < 0.5


def step_results() -> Results:
    results = Results.start("step", {"config": "voc", "overrides": []}, torch.device("cpu"))
    results.cases["negatives-500"] = {"negatives": 500, "anchors": 30, "batch": 2}
    results.rows.append(Row("negatives-500", "no loss", "float32", "step", samples=[0.25]))
    return results


def test_documents_show_laws_and_the_calculation(tmp_path: Path, seed: int) -> None:
    planted_results(seed).save(tmp_path / "loss.json")
    step_results().save(tmp_path / "step.json")
    document = tmp_path / "doc.md"
    document.write_text(
        "<!-- benchmark: loss.json exponents -->\n<!-- end benchmark -->\n"
        "<!-- benchmark: loss.json ranks=step.json -->\n<!-- end benchmark -->\n"
    )
    assert main(["readme", str(document)]) == 0
    text = document.read_text()
    assert updated(document) == text
    assert "| ours | fp32 | 0.90 ± 0.00 | 1.02 ± 0.00 | 0.80 ± 0.00 | 0.10 ± 0.00 |" in text
    assert "a calculation, not a measurement" in text
    assert "500 ms for a step without the loss" in text  # of twice as many images
    assert ranks_of(planted_results(seed), step_results()).network == 0.5


def test_a_result_without_the_figures_is_refused(seed: int) -> None:
    results = planted_results(seed)
    few = planted_results(seed)
    few.cases = dict(list(few.cases.items())[:1])
    few.rows = few.rows[:1]
    with pytest.raises(UsageError, match="three cases"):
        exponents_table(few)
    empty = step_results()
    empty.rows.clear()
    for loss, step in ((few, step_results()), (results, empty)):
        with pytest.raises(UsageError, match="three numbers of negatives"):
            ranks_table(loss, step)


def test_laws_are_drawn_through_their_points(seed: int) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.documents.law_plots import law_figures

    results = planted_results(seed, noise=0.1)
    figures = law_figures(results)
    assert set(figures) == {"time-laws", "memory-laws"}
    axes = figures["time-laws"].axes
    assert [a.get_xlabel()[-1] for a in axes] == list(SIZES)
    for size, a in zip(SIZES, axes, strict=True):
        line, points = a.lines
        measured = points_of(results, size, "time", "ours", "float32")
        law = fit(measured)
        assert list(zip(points.get_xdata(), points.get_ydata(), strict=True)) == measured
        assert list(line.get_ydata()) == [law.at(measured[0][0]), law.at(measured[-1][0])]
        assert points.get_label() == f"ours fp32: {law.exponent:.2f} ± {law.error:.2f}"
    results.cases.clear()
    assert law_figures(results) == {}
