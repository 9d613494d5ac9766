"""A step is divided without rest: each operation counts once, for the part that caused it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from tiny_run import TINY_RUN

pytest.importorskip("matplotlib")

from benchmarks.__main__ import main
from benchmarks.measure.results import Results
from benchmarks.step import parts
from benchmarks.step.parts import PARTS, divide
from benchmarks.step.parts_table import BESIDE, LOADING, share_beside


@dataclass
class Range:
    start: float
    end: float

    def elapsed_us(self) -> float:
        return self.end - self.start


@dataclass(eq=False)
class Span:
    name: str
    start: float
    end: float
    cpu_parent: Span | None = None
    sequence_nr: int = -1
    time_range: Range = field(init=False)

    def __post_init__(self) -> None:
        self.time_range = Range(self.start, self.end)


def test_operations_count_for_the_part_that_caused_them():
    step = Span(parts._STEP, 0, 1000)
    module = Span(parts._MODULE, 100, 300, step)
    backward = "autograd::engine::evaluate_function: "
    spans = [
        step,
        Span("aten::to", 0, 10, step),
        module,
        Span("aten::conv2d", 110, 290, module, sequence_nr=7),
        Span("aten::index_select", 310, 330, step, sequence_nr=8),
        Span("cac_ext::prepare_negatives", 330, 350, step),
        Span("DirectionalContrastiveLoss", 350, 400, step, sequence_nr=9),
        Span("aten::detach", 400, 410, step, sequence_nr=10),  # recorded with the next number
        Span("aten::cross_entropy_loss", 410, 420, step, sequence_nr=10),
        Span(f"{backward}NllLossBackward0", 500, 510, step, sequence_nr=10),
        Span(f"{backward}DirectionalContrastiveLossBackward", 520, 540, step, sequence_nr=9),
        Span(f"{backward}IndexSelectBackward0", 540, 550, step, sequence_nr=8),
        Span(f"{backward}ConvolutionBackward0", 550, 690, step, sequence_nr=7),
        Span(f"{backward}torch::autograd::AccumulateGrad", 690, 700, step, sequence_nr=99),
        Span("Optimizer.step#SGD.step", 700, 760, step),
        Span("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 800, 950, step),
        Span(parts._STEP, 1000, 1000),  # the profiler ended in it
    ]
    (seconds,), rest = divide(spans)
    microseconds = {part: round(1e6 * value) for part, value in seconds.items()}
    assert microseconds == {
        "network, forward": 200,
        "network, backward": 150,
        "optimizer": 60,
        "cross entropy": 10 + 20,  # until the next node of the backward
        "contrastive loss": 50 + 20,
        "loading of images": 150,
        "sorting of negatives": 20,
        "the rest": 1000 - 200 - 150 - 60 - 30 - 70 - 150 - 20,
    }
    assert sum(microseconds.values()) == 1000
    assert {name: round(1e6 * value) for name, value in rest.items()} == {
        "aten::to": 10,
        "aten::index_select": 20,
        "aten::detach": 10,
        "IndexSelectBackward0": 10,
        "Python, between operations": 320 - 50,
    }


def test_the_names_of_the_table_are_those_of_the_parts():
    assert set(BESIDE) < set(PARTS)
    assert LOADING == parts.LOADING


@pytest.mark.usefixtures("one_thread", "without_pictures")
def test_the_steps_of_a_training_are_divided(tmp_path, capsys):
    output = tmp_path / "parts.json"
    overrides = [*TINY_RUN, "schedule.log_every=2"]
    command = ["parts", "--threads", "1", "--samples", "2", "--warm-up", "1"]
    assert main([*command, "--output", str(output), "--set", *overrides]) == 0
    results = Results.load(output)
    assert [row.implementation for row in results.rows] == list(PARTS)
    for row in results.rows:
        assert len(row.samples) == 2
        assert all(value > 0 for value in row.samples), row.implementation
    share = share_beside(results)
    assert 0 < share < 1
    assert f"beside network and losses: {100 * share:.1f}% of the step" in capsys.readouterr().out
    assert sum(results.extra["rest"].values()) > 0


def test_parts_of_another_method_or_device_are_refused(capsys):
    assert main(["parts", "--set", "method.name=fixmatch"]) == 2
    assert "method.name=cac" in capsys.readouterr().err
