"""The best network is kept, a run can end early, get more epochs, or start from a trained one."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dying_run import assert_resumes_bit_for_bit
from run_folders import assert_identical, assert_same_run
from tiny_run import TINY_RUN

from cac_ext.train import load_run, loop, resume
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.errors import CheckpointError, ConfigError
from cac_ext.train.loop import TrainResult, train
from cac_ext.train.runs.checkpoint import Best, read_checkpoint
from cac_ext.train.runs.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

#: Supervised alone, an evaluation at the end of each epoch of two steps.
QUICK = [*TINY_RUN, "method.name=sup_only", "schedule.epochs=4", "schedule.evaluate_every=1"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    """Evaluations find given mIoUs; returns the weights that each of them saw."""

    def script(*mious: float) -> list[dict[str, torch.Tensor]]:
        values, seen = iter(mious), []

        def evaluate(network, images, num_classes, *_, **__):
            seen.append({name: x.clone() for name, x in network.state_dict().items()})
            miou = next(values)
            return SimpleNamespace(miou=miou, class_iou=[miou] * num_classes)

        monkeypatch.setattr(loop, "evaluate", evaluate)
        monkeypatch.setattr(loop, "save_evaluation", lambda *_: None)  # needs a confusion matrix
        return seen

    return script


def quick(folder: Path, *overrides: str, again: bool = False) -> TrainResult:
    return train(load("synthetic", [*QUICK, *overrides]), folder, resume=again, progress=False)


def test_the_network_of_the_highest_miou_is_kept_beside_the_last(
    tmp_path: Path, scripted, capsys
) -> None:
    nan = float("nan")
    seen = scripted(nan, 0.5, 0.4, 0.5)
    result = quick(tmp_path, "run.keep_best=true")
    assert result.best == Best(iteration=4, miou=0.5, worse_since=2)
    assert result.miou == 0.5
    for best, index in ((True, 1), (False, 3)):
        run = load_run(tmp_path, best=best)
        assert run.iteration == 2 * (index + 1)
        for name, weight in run.network.state_dict().items():
            assert torch.equal(weight, seen[index][name])
    assert main(["evaluate", str(tmp_path), "--best"]) == 0
    assert "iteration 4; " in capsys.readouterr().out
    assert (tmp_path / "evaluation/best-scale-1/evaluation.json").exists()


def test_the_best_network_is_kept_only_if_asked_for(tmp_path: Path, scripted) -> None:
    scripted(0.5, 0.4)
    result = quick(tmp_path, "schedule.epochs=2")
    assert result.best == Best(2, 0.5, 1)
    assert not (tmp_path / "best.pt").exists()
    with pytest.raises(CheckpointError, match=r"holds no best\.pt: train with run\.keep_best=true"):
        load_run(tmp_path, best=True)


def test_a_run_ends_early_and_more_patience_continues_it(
    tmp_path: Path, scripted, no_step_but
) -> None:
    scripted(0.5, 0.4, 0.3)
    result = quick(tmp_path, "schedule.patience=2")
    assert result.miou == 0.3
    assert read_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 6
    with no_step_but():
        assert quick(tmp_path, "schedule.patience=2", again=True).miou == 0.3
        assert resume(tmp_path, progress=False).best == Best(2, 0.5, 2)
    scripted(0.6)
    result = resume(tmp_path, ["schedule.patience=null"], progress=False)
    assert result.best == Best(8, 0.6)
    validated = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "validation"]
    assert [x["miou"] for x in validated] == [0.5, 0.4, 0.3, 0.6]


@pytest.fixture
def no_step_but(monkeypatch: pytest.MonkeyPatch):
    """A context in which no step may be taken."""

    def context():
        patch = pytest.MonkeyPatch.context()

        class NoStep:
            def __enter__(self) -> None:
                def fail(*_: object) -> None:
                    raise AssertionError("a step was made")

                patch.__enter__().setattr(loop, "take_step", fail)

            def __exit__(self, *error: object) -> None:
                patch.__exit__(*error)

        return NoStep()

    return context


def test_a_run_that_dies_behind_the_best_network_comes_to_the_same(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("run.keep_best=true", f"seed={seed}")
    quick(tmp_path / "whole", *settings)
    save, saved = loop.save_checkpoint, 0

    def dying(*arguments):
        nonlocal saved
        saved += 1
        if saved == 2:  # best.pt of this evaluation is written already, if it is the best
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "broken", *settings)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    quick(tmp_path / "broken", *settings, again=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    networks = [
        torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("whole", "broken")
    ]
    assert_identical(*networks, "best.pt")


EVERYTHING = [
    "schedule.accumulation=2",
    "optimizer.clip_norm=0.1",
    "supervised.class_weights=[1,2,0.5,1,3,1,1]",
    "supervised.ohem_threshold=0.2",
    "supervised.dice_weight=0.5",
    "run.keep_best=true",
    "schedule.patience=9",
    "schedule.evaluate_every=1",
    "schedule.epochs=4",
    "network.dropout=0.5",
    "method.confidence_threshold=0.1",
    "method.selected_num=6",
]


def test_a_run_with_every_feature_resumes_bit_for_bit_after_sigkill(
    tmp_path: Path, seed: int
) -> None:
    overrides = [*TINY_RUN, *EVERYTHING, f"seed={seed}"]
    assert_resumes_bit_for_bit(overrides, tmp_path)
    assert (tmp_path / "broken/best.pt").exists()
    logged = [x for x in read_metrics(tmp_path / "whole/metrics.jsonl") if x["split"] == "train"]
    assert max(x["gradient_norm"] for x in logged) > 0.1  # what is clipped


def test_a_finished_run_takes_more_epochs_at_the_rate_of_the_longer_schedule(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(tmp_path / "one", "schedule.epochs=2", f"seed={seed}")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    take_step, rates = loop.take_step, {}

    def watched(method, state, *rest):
        phases = take_step(method, state, *rest)
        rates[state.iteration - 1] = state.optimizers["network"].param_groups[0]["lr"]
        return phases

    monkeypatch.setattr(loop, "take_step", watched)
    assert main(["resume", str(tmp_path / "one"), "schedule.epochs=4"]) == 0
    rate = load("synthetic", QUICK).optimizer.learning_rate
    assert rates == {i: rate * (1 - i / 8) ** 0.9 for i in range(4, 8)}
    validated = [x for x in read_metrics(tmp_path / "one/metrics.jsonl") if "miou" in x]
    assert [x["iteration"] for x in validated] == [2, 4, 6, 8]

    # Interrupted in its first and its second new epoch: the same.
    for at, overrides in ((5, ["schedule.epochs=4"]), (7, [])):

        def dying(method, state, *rest, at=at):
            if state.iteration == at:
                raise KeyboardInterrupt
            return take_step(method, state, *rest)

        monkeypatch.setattr(loop, "take_step", dying)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "two", overrides, progress=False)
    monkeypatch.setattr(loop, "take_step", take_step)
    resume(tmp_path / "two", progress=False)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_epochs_change_in_no_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = loop.take_step

    def dying(method, state, *rest):
        if state.iteration == 3:
            raise KeyboardInterrupt
        return take_step(method, state, *rest)

    monkeypatch.setattr(loop, "take_step", dying)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path, "schedule.epochs=2")
    monkeypatch.setattr(loop, "take_step", take_step)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match="taken all its epochs can be given more"):
        resume(tmp_path, ["schedule.epochs=3"], progress=False)  # not finished
    quick(tmp_path, "schedule.epochs=2", again=True)
    for changed in (["schedule.epochs=1"], ["schedule.epochs=3", "optimizer.momentum=0.5"]):
        with pytest.raises(CheckpointError, match="other settings"):
            resume(tmp_path, changed, progress=False)
    with pytest.raises(CheckpointError, match=r"schedule\.epochs is 2 there and 3 here"):
        quick(tmp_path, "schedule.epochs=3", again=True)  # as `compare` resumes
    assert (tmp_path / "config.yaml").read_text() == before


def test_more_epochs_of_a_student_leave_its_teacher_alone(tmp_path: Path) -> None:
    overrides = [*QUICK, "schedule.epochs=1", "self_training.pseudo_labels=auto"]
    run = tmp_path / "run"
    assert main(["train", "synthetic", *overrides, "--folder", str(run)]) == 0
    teacher = (run / "teacher/checkpoint.pt").read_bytes()
    resume(run, ["schedule.epochs=2"], progress=False)
    result = resume(run, progress=False)  # finished: gives the result
    assert read_checkpoint(run / "checkpoint.pt")["iteration"] == 4
    assert result.best is not None
    assert (run / "teacher/checkpoint.pt").read_bytes() == teacher


def first_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights in front of the first step of the next training."""
    take_step, first = loop.take_step, {}

    def watched(method, state, *rest):
        if not first:
            network = method.evaluated.state_dict()
            first.update({name: weight.clone() for name, weight in network.items()})
        return take_step(method, state, *rest)

    monkeypatch.setattr(loop, "take_step", watched)
    return first


def test_a_run_starts_from_one_of_other_classes_with_a_new_classifier(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    source = load_run(run_folder).network.state_dict()
    overrides = [*QUICK, "schedule.epochs=1", "seed=3"]
    fresh = first_weights(monkeypatch)
    train(load("synthetic", overrides), tmp_path / "fresh", progress=False)

    copied = tmp_path / "copied"
    shutil.copytree(run_folder, copied)
    started = first_weights(monkeypatch)
    settings = [*overrides, f"network.start_from={copied}"]
    train(load("synthetic", settings), tmp_path / "run")
    assert f"weights of {copied} (iteration 1), but a new classifier" in capsys.readouterr().out
    assert started.keys() == source.keys()
    for name, weight in started.items():
        expected = fresh if name.startswith("classifier.") else source
        assert torch.equal(weight, expected[name]), name

    shutil.rmtree(copied)  # a run that has begun needs its origin no more
    assert resume(tmp_path / "run", progress=False).miou >= 0


def test_a_run_starts_from_the_best_network_of_another(
    tmp_path: Path, scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(0.5, 0.4, 0.3)
    quick(tmp_path / "one", "schedule.epochs=2", "run.keep_best=true")
    started = first_weights(monkeypatch)
    quick(tmp_path / "two", "schedule.epochs=1", f"network.start_from={tmp_path / 'one/best.pt'}")
    for name, weight in started.items():  # the classifier, too
        assert torch.equal(weight, seen[0][name]), name


def test_what_a_run_cannot_start_from_is_named(run_folder: Path, tmp_path: Path) -> None:
    start = f"network.start_from={run_folder}"
    with pytest.raises(ConfigError, match=r"network\.start_from.*holds another network.*encoder"):
        quick(tmp_path / "run", start, "network.width=32")
    with pytest.raises(CheckpointError, match="there is no network"):
        quick(tmp_path / "run", f"network.start_from={tmp_path / 'missing'}")


def test_a_run_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """It has no settings that came later; their defaults change nothing."""
    quick(tmp_path, "schedule.epochs=1")
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    del saved["best"], saved["config"]["supervised"], saved["config"]["schedule"]["accumulation"]
    torch.save(saved, path)
    assert quick(tmp_path, "schedule.epochs=1", again=True).best is None
    with pytest.raises(CheckpointError, match=r"accumulation is 1 there and 2 here"):
        quick(tmp_path, "schedule.epochs=1", "schedule.accumulation=2", again=True)
