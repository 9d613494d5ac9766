"""The share of the processor's peak counts every product that is executed, set by set."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from made_up_results import make_results

import cac_ext
from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.documents.readme import case_markdown, sets_markdown
from benchmarks.documents.report import text_of
from benchmarks.implementations.contenders import Contender, float32_products, make_contenders
from benchmarks.implementations.ours import OursUpTo
from benchmarks.loss import sets
from benchmarks.measure import peaks
from benchmarks.measure.results import Results, Row
from benchmarks.operations import Multiplication
from cac_ext import _C

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
TINY = Case("tiny", A=64, N=512, C=32, K=5)


@pytest.fixture
def peak_of_a_tera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cac_ext, "cpu_peak", lambda dtype, name: 1e12)


@pytest.mark.usefixtures("peak_of_a_tera")
@pytest.mark.parametrize("products", [1, 3, 6])
def test_every_executed_product_counts(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = Multiplication("bfloat16", "amx", products)
    monkeypatch.setattr(OursUpTo, "multiplication", lambda self, device, dtype: used)
    found = peaks.Peaks(CPU)
    found.add(Contender(OursUpTo("amx"), "float32"))
    row = Row("voc", "amx", "float32", "both", samples=[2.0], executed_operations=10**11)
    found.judge(row)
    assert row.share_of_peak == pytest.approx(products * 1e11 / 2.0 / 1e12)
    assert row.multiplied_as == str(used)
    without = Row("voc", "amx", "float32", "backward", samples=[2.0], executed_operations=0)
    found.judge(without)
    assert without.share_of_peak is None


def test_ours_multiplies_as_its_kernel_does() -> None:
    for name in _C.cpu_capabilities():
        for dtype, precision, parts in (("float32", "highest", 6), ("float32", "high", 3)):
            with float32_products(precision):
                used = OursUpTo(name).multiplication(CPU, getattr(torch, dtype))
            split = Multiplication("bfloat16", "amx", parts)
            own = Multiplication("float32", name.removesuffix("_bf16"))
            assert used == (split if name == "amx" else own)


def test_torch_is_judged_by_the_most_capable_instructions_of_the_type() -> None:
    (float32, medium) = make_contenders(["tiled:float32", "tiled:float32-medium"], CPU)
    used = float32.implementation.multiplication(CPU, torch.float32)
    assert used == Multiplication("float32", _C.cpu_peak_capabilities(6)[-1])
    with float32_products(medium.precision):  # torch may multiply it as bfloat16, or not
        assert medium.implementation.multiplication(CPU, torch.float32) is None


def test_a_run_shows_the_share_and_how_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(CASES, "tiny", [TINY])
    monkeypatch.setattr("benchmarks.measure.limits._SIZES", {"cpu": (1e8, 2**20)})
    output = tmp_path / "out.json"
    arguments = ["loss", "--cases", "tiny", "--repeats", "2", "--no-memory", "--threads", "1"]
    arguments += ["--implementations", "ours:float32", "tiled:float32", "--output", str(output)]
    assert main(arguments) == 0
    results = Results.load(output)
    for row in results.rows:
        assert (row.share_of_peak is None) == (row.phase == "backward")
    printed = capsys.readouterr().out
    assert "of peak" in printed
    assert f"multiplied as {results.rows[0].multiplied_as}: ours fp32" in printed
    assert results.cases["tiny"]["peak"]
    assert "of peak" in case_markdown(results, "tiny")


def test_a_file_without_the_figure_has_no_column_of_it(seed: int) -> None:
    old = Results.load(ROOT / "benchmarks/results/cpu-2core-amx/loss.json")
    assert all(row.share_of_peak is None for row in old.rows)
    assert "of peak" not in case_markdown(old, "voc")
    made_up = make_results(seed)
    made_up.rows[0].share_of_peak = 0.625
    table = case_markdown(made_up, made_up.rows[0].case)
    assert "| of matmul rate | of peak |" in table
    assert "62%" in table


def planted(share: float, beside: float) -> Results:
    """A run in which a row takes 1 s, so much of it with products and so much beside them."""
    results = Results.start("sets", {}, CPU)
    for C in (128, 32):
        case = Case("voc", C=C) if C == 128 else sets.narrow(Case("voc"))
        results.cases[case.name] = {"name": case.name, "A": case.A, "N": case.N, "C": C, "K": 21}
        row = Row(case.name, "avx2", "float32", "both")
        row.samples = [beside + (1 - beside) * C / 128]
        row.executed_operations, row.share_of_peak = 10**9 * C, share
        row.multiplied_as = str(Multiplication("float32", "avx2"))
        results.rows.append(row)
    return results


@pytest.mark.parametrize(
    ("share", "beside", "bound"),
    [(0.6, 0.3, "multiply-adds"), (0.3, 0.1, "operands"), (0.2, 0.7, "beside products")],
)
def test_the_parts_of_a_time_are_found(share: float, beside: float, bound: str) -> None:
    results = planted(share, beside)
    parts = sets.parts_of(results, results.rows[0])
    assert parts.multiply_adds == share
    assert parts.beside_products == pytest.approx(beside)
    assert parts.operands == pytest.approx(1 - share - beside)
    (line,) = sets.set_lines(results)  # the narrow case has none
    assert line[-1] == bound
    assert bound in sets_markdown(results)
    assert text_of(results) == sets.sets_table(results)


def test_each_set_is_measured_in_the_types_that_it_multiplies_otherwise() -> None:
    found = {(one.name, one.dtype_name) for one in sets.contenders_of(())}
    assert {("portable", "float32"), ("portable", "bfloat16"), ("portable", "float16")} <= found
    assert ("portable", "float32-high") not in found  # the same call as float32
    assert ("avx512_bf16", "float32") not in found  # multiplied as with avx512
    if "amx" in _C.cpu_capabilities():
        assert {("avx512_bf16", "bfloat16"), ("amx", "float32-high")} <= found


def test_the_command_writes_a_line_for_each_set_and_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(CASES, "tiny", [TINY])
    output = tmp_path / "sets.json"
    before = _C.cpu_capability()
    names = _C.cpu_capabilities()[:2]
    arguments = ["loss", "--instruction-sets", *names, "--cases", "tiny", "--repeats", "2"]
    assert main([*arguments, "--threads", "1", "--output", str(output)]) == 0
    assert _C.cpu_capability() == before
    results = Results.load(output)
    assert results.kind == "sets"
    assert {row.implementation for row in results.rows} == set(names)
    assert all(len(row.samples) == 2 and row.share_of_peak > 0 for row in results.rows)
    assert "bound by" in capsys.readouterr().out
    json.loads(output.read_text())


def test_time_that_is_over_skips_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results.start("sets", {}, CPU)
    options = sets.SetOptions(("portable",), seed=0, repeats=1, deadline=time.monotonic() - 1)
    sets.measure_sets(results, [TINY], options)
    assert {row.status for row in results.rows} == {"skipped"}
    assert "time budget" in results.rows[0].detail


def test_an_unknown_set_is_answered_with_the_known_ones(capsys) -> None:
    assert main(["loss", "--instruction-sets", "mmx"]) == 2
    assert ", ".join(_C.cpu_capabilities()) in capsys.readouterr().err
