"""`benchmarks compare` finds regressions in equal experiments only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up_results import SIZES, make_results

from benchmarks.__main__ import main
from benchmarks.measure.results import Results, Row


@pytest.fixture
def compare_files(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Compares two results by the command; returns the exit code and the printed text."""

    def run(before: Results, after: Results) -> tuple[int, str]:
        paths = tmp_path / "a.json", tmp_path / "b.json"
        for path, results in zip(paths, (before, after), strict=True):
            results.save(path)
        code = main(["compare", *map(str, paths)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def make_step_results(seconds: float = 1.0, **settings: object) -> Results:
    known = {"seed": 0, "config": "synthetic", "overrides": [], "batch": 8, **settings}
    results = Results.start("step", known, torch.device("cpu"))
    results.cases["negatives-500"] = {"negatives": 500, "anchors": 100, "batch": known["batch"]}
    results.rows = [Row("negatives-500", "ours", "float32", "step", samples=[seconds] * 5)]
    return results


def test_a_case_of_other_sizes_is_not_compared(compare_files, seed: int) -> None:
    before, after = make_results(seed), make_results(seed, slower=2.0)
    after.cases[f"n-{SIZES[-1]}"]["C"] = 256
    code, text = compare_files(before, after)
    assert code == 0
    assert "slower!" not in text
    assert f"n-{SIZES[0]} " in text
    assert (
        f"2 rows of n-{SIZES[-1]} are not compared, other experiments: C is 128 in A and 256 in B"
        in text
    )


def test_another_seed_leaves_nothing_to_compare(compare_files, seed: int) -> None:
    before, after = make_results(seed), make_results(seed, slower=2.0)
    after.settings["seed"] = 1
    code, text = compare_files(before, after)
    assert code == 2
    assert "seed is 0 in A and 1 in B" in text


@pytest.mark.parametrize(
    ("setting", "value"),
    [("config", "voc"), ("overrides", ["augment.crop_size=65"]), ("batch", 16), ("seed", 3)],
)
def test_steps_of_other_settings_are_not_compared(compare_files, setting: str, value) -> None:
    code, text = compare_files(make_step_results(), make_step_results(2.0, **{setting: value}))
    assert code == 2
    assert f"{setting} is " in text
    assert "slower!" not in text


def test_steps_of_equal_settings_are_compared(compare_files) -> None:
    # Repeats and time budget may differ.
    slower = make_step_results(2.0, repeats=7, time_budget=5.0)
    code, text = compare_files(make_step_results(), slower)
    assert code == 1
    assert "slower!" in text


def test_curves_and_different_kinds_are_refused_by_name(
    compare_files, tmp_path: Path, seed: int
) -> None:
    convergence = Results.start("convergence", {"seed": 0}, torch.device("cpu"))
    code, text = compare_files(make_results(seed), convergence)
    assert code == 2
    assert f"{tmp_path / 'b.json'} is a 'convergence' result" in text
    assert "python -m benchmarks report" in text
    code, text = compare_files(make_results(seed), make_step_results())
    assert code == 2
    assert f"a.json is a 'loss' result and {tmp_path / 'b.json'} a 'step' result" in text


def test_the_notes_say_what_else_differs(compare_files, seed: int) -> None:
    before, after = make_results(seed), make_results(seed)
    after.complete = False
    after.machine["environment"] = {"OMP_NUM_THREADS": "1"}
    before.machine["environment"] = {}
    for case in after.cases.values():
        case["matrix_rate"] = {"float32": 1.5e11}
    code, text = compare_files(before, after)
    assert code == 0
    assert "note: B is incomplete: its run ended early" in text
    assert "note: environment differs: {} and {'OMP_NUM_THREADS': '1'}" in text
    assert "ran float32 matrix products 1.50 times as fast in B" in text
