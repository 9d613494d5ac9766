"""`benchmarks convergence` trains with each loss and says how near the curves stay."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")
pytest.importorskip("tensorboard")

from benchmarks.__main__ import main
from benchmarks.convergence import LOSSES
from benchmarks.golden import deviation
from benchmarks.results import Results

SMALL = [
    *("augment.crop_size=33", "network.width=16", "method.projector_channels=16"),
    *("schedule.labelled_batch=2", "schedule.unlabelled_batch=2"),
    *("data.synthetic.validation=1", "data.synthetic.labelled=2", "data.synthetic.unlabelled=2"),
    "method.confidence_threshold=0.2",  # or an untrained network would have no active anchor
]


def test_a_training_goes_the_same_way_with_the_reference(tmp_path: Path, seed: int, capsys) -> None:
    output = tmp_path / "convergence.json"
    common = ["--iterations", "3", "--seed", str(seed), "--threads", "2", "--output", str(output)]
    assert main(["convergence", *common, "--set", *SMALL]) == 0
    curves = Results.load(output).extra["curves"]
    assert list(curves) == list(LOSSES)
    assert all(value > 0 for value in curves["ours"]["loss_unsupervised"])
    yardstick = curves["reference float64"]["loss"]
    assert len(yardstick) == 3
    assert deviation(curves["ours"]["loss"], yardstick) < 1e-4
    assert "golden curve" in capsys.readouterr().out
