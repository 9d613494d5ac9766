"""`benchmarks convergence` trains with each loss and reports the distances of the curves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")
pytest.importorskip("tensorboard")

from benchmarks.__main__ import main
from benchmarks.convergence import command as convergence
from benchmarks.convergence.golden import TOLERANCE, deviation
from benchmarks.convergence.table import changed_steps, convergence_table
from benchmarks.convergence.training import LOSSES, YARDSTICK, Selection
from benchmarks.documents import plots
from benchmarks.measure.results import Results

SMALL = [
    *("augment.crop_size=33", "network.width=16", "method.projector_channels=16"),
    *("schedule.labelled_batch=2", "schedule.unlabelled_batch=2"),
    *("data.synthetic.validation=1", "data.synthetic.labelled=2", "data.synthetic.unlabelled=2"),
    "method.confidence_threshold=0.2",  # with more, an untrained network has no active anchor
]


def test_a_training_goes_the_same_way_with_the_reference(tmp_path: Path, seed: int, capsys) -> None:
    output = tmp_path / "convergence.json"
    words = ["--iterations", "3", "--seed", str(seed), "--seeds", "1", "--threads", "2"]
    assert main(["convergence", *words, "--output", str(output), "--set", *SMALL]) == 0
    (curves,) = Results.load(output).extra["curves"].values()
    assert list(curves) == list(LOSSES)
    ours, yardstick = curves["ours"], curves["reference float64"]
    assert all(value > 0 for value in ours["loss_unsupervised"])
    assert len(yardstick["loss"]) == len(yardstick["active"]) == 3
    assert all(count > 0 for count in yardstick["active"])
    same = (changed_steps(ours) or [3])[0]  # from there on the loss is made of other pixels
    assert same >= 1  # at first all trainings have the same weights
    assert deviation([1, *ours["loss"][:same]], [1, *yardstick["loss"][:same]]) < 1e-4
    golden = Results.load(output).extra["golden"]
    assert golden["deviation"] <= golden["tolerance"] == TOLERANCE
    line = f"golden curve: largest relative distance {golden['deviation']:.1e} (allowed 1e-05)"
    assert line in capsys.readouterr().out


def test_every_loss_is_trained_with_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train(name, arguments, seed):
        trained.append((seed, name))
        curve = {"loss": [float(seed)], "loss_unsupervised": [1.0]}
        masks, labels = [torch.ones(2, 4, dtype=torch.bool)], [torch.ones(12)]
        return curve, Selection(LOSSES[name], None, masks, labels)

    monkeypatch.setattr(convergence, "train_with", train)
    output = tmp_path / "c.json"
    assert main(["convergence", "--seed", "7", "--seeds", "2", "--output", str(output)]) == 0
    assert trained == [(seed, name) for seed in (7, 8) for name in LOSSES]
    by_seed = Results.load(output).extra["curves"]
    assert list(by_seed) == ["7", "8"]
    losses = {name: curve["loss"] for name, curve in by_seed["8"].items()}
    assert losses == {name: [8.0] for name in LOSSES}


def test_a_loss_off_the_golden_curve_ends_with_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(convergence, "_train_all", lambda *arguments: None)
    right = convergence.train_curve
    for factor, code in ((1.0, 0), (1 + 3e-5, 1)):

        def curve(loss, dtype, factor=factor):
            return [factor * value for value in right(loss, dtype)]

        monkeypatch.setattr(convergence, "train_curve", curve)
        assert main(["convergence", "--output", str(tmp_path / "c.json")]) == code
    assert "golden curve: largest relative distance 3.0e-05" in capsys.readouterr().out


def test_a_step_made_of_other_pixels_is_found(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidences = 0.9 * torch.rand(2, 2, 50, generator=generator)  # of each step and view
    labels = torch.randint(5, (2, 50), generator=generator)

    def record(changes: bool) -> Selection:
        selection = Selection(lambda *arguments, **options: torch.zeros(()))
        for step in range(2):
            first, second = confidences[step].clone()
            negative_labels = labels[0].clone()
            if changes and step == 1:
                first[7], second[7] = 0.3, 0.99
                negative_labels[3] += 1
            features = torch.zeros(50, 1)
            arguments = (features, features, first, second, *labels, features, negative_labels)
            selection(*arguments, confidence_threshold=0.95)
        return selection

    differences = record(True).differences(record(False))
    assert differences["active"] == [0, 1]
    assert differences["anchors_changed"] == [0, 1]
    assert differences["labels_changed"] == [0, 1]
    assert changed_steps(differences) == [1]


def test_the_table_tells_a_jump_from_a_drift() -> None:
    results = Results.start("convergence", {}, torch.device("cpu"))
    results.extra["golden"] = {"deviation": 0.0, "tolerance": 1e-5}
    nothing = {"active": [9, 9, 9], "anchors_changed": [0, 0, 0], "labels_changed": [0, 0, 0]}
    curves = {
        YARDSTICK: {"loss": [1.0, 1.0, 1.0], **nothing},
        "drift": {"loss": [1.0, 1.0, 1.002], **nothing},
        "jump": {"loss": [1.0, 1.00001, 1.003], **nothing, "anchors_changed": [0, 0, 1]},
    }
    results.extra["curves"] = {"5": curves}
    rows = [line.split() for line in convergence_table(results).splitlines()]
    assert ["5", "drift", "2.0e-03", "3", "0,", "0", "0.0e+00", "0", "-", "2.0e-03"] in rows
    assert ["5", "jump", "3.0e-03", "3", "1,", "0", "1.0e-05", "1", "3", "1.0e-05"] in rows
    (figure,) = plots.convergence_figures(results).values()
    curves_of_seed, distances = figure.axes
    assert {line.get_label(): list(line.get_ydata()) for line in curves_of_seed.lines} == {
        name: curve["loss"] for name, curve in curves.items()
    }
    drift, jump = distances.lines
    assert list(drift.get_ydata()) == pytest.approx([plots.FLOOR, plots.FLOOR, 2e-3])
    assert list(jump.get_ydata()) == pytest.approx([plots.FLOOR, 1e-5, 3e-3])
    assert (drift.get_markevery(), jump.get_markevery()) == ([], [2])  # dots: other pixels
    assert [line.get_label() for line in distances.lines] == ["drift", "jump"]


def test_a_training_without_the_loss_is_refused(capsys) -> None:
    assert main(["convergence", "--iterations", "1", "--set", *SMALL, "method.loss=l2"]) == 2
    assert "set method.loss=contrastive" in capsys.readouterr().err
