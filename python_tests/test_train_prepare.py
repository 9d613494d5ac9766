"""A run makes the pseudo labels that it needs: in one or several processes, killed or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from run_folders import assert_same_run
from tiny_run import TINY_RUN

from cac_ext.train import loop
from cac_ext.train.cli.main import main
from cac_ext.train.data import build_datasets
from cac_ext.train.errors import ProcessError
from cac_ext.train.inference import predict_logits
from cac_ext.train.pseudo_labels import image_classifier as classifier
from cac_ext.train.runs.folder import load_run
from cac_ext.train.runtime import whole_files as files
from cac_ext.train.runtime.distributed import process_group

TINY = [
    *TINY_RUN,
    "network.dropout=0",
    "data.synthetic.labelled=4",
    "data.synthetic.unlabelled=6",
    "data.synthetic.validation=2",
    "image_classifier.epochs=2",
    "image_classifier.batch=3",
    "image_classifier.scales=[1.0,0.5]",
    "self_training.confidence_threshold=0.2",
]
BOTH = ["self_training.pseudo_labels=auto", "weak.pseudo_labels=auto"]
LABELS = ("teacher_labels", "activation_labels")


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def _command(seed: int, folder: Path) -> list[str]:
    return ["train", "synthetic", *TINY, *BOTH, f"seed={seed % 10**6}", "--folder", str(folder)]


def _masks(folder: Path) -> dict[str, bytes]:
    return {
        f"{labels}/{path.name}": path.read_bytes()
        for labels in LABELS
        for path in (folder / labels).glob("*.png")
    }


def test_train_makes_the_pseudo_labels_in_its_own_folder(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "run"
    assert main(_command(seed, folder)) == 0
    assert len(_masks(folder)) == 12
    told = capsys.readouterr().out
    for name in LABELS:
        report = json.loads((folder / name / "pseudo_labels.json").read_text())["report"]
        assert report["images"] == 6
        assert f"{folder / name}: 6 images, {100 * report['labelled']:.1f} %" in told
        assert 0 < report["miou"] < 1

    # Given their folders instead, the result is the same.
    given = [f"self_training.pseudo_labels={folder / LABELS[0]}"]
    given += [f"weak.pseudo_labels={folder / LABELS[1]}"]
    other = tmp_path / "other"
    command = [word for word in _command(seed, other) if word not in BOTH]
    assert main([*command, *given]) == 0
    states = [torch.load(run / "checkpoint.pt")["modules"]["model"] for run in (folder, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert not (other / "teacher").exists()

    # The folder is refused to another run, and can be moved: nothing in it names a place.
    assert main(_command(seed, folder)) == 2
    assert "cac-ext resume" in capsys.readouterr().err
    moved = folder.rename(tmp_path / "moved")
    assert main(["resume", str(moved)]) == 0
    assert not folder.exists()


def _die(command: list[str], stage: str, number: signal.Signals, told: Path) -> None:
    """Runs the command; this process gets the signal in the middle of a stage."""
    seen = 0

    def after(count: int, function):
        def counted(*arguments, **keywords):
            nonlocal seen
            seen += 1
            if seen == count:
                os.kill(os.getpid(), number)
            return function(*arguments, **keywords)

        return counted

    if stage in ("teacher", "student"):
        loop.take_step = after(3, loop.take_step)
    elif stage == "classifier":
        loss = classifier.F.binary_cross_entropy_with_logits
        classifier.F.binary_cross_entropy_with_logits = after(3, loss)
    else:
        replace, written = os.replace, 0

        def replaced(source, target) -> None:
            nonlocal written
            replace(source, target)
            written += Path(target).suffix == ".png" and Path(target).parent.name == stage
            if written == 3:
                os.kill(os.getpid(), number)

        files.os.replace = replaced
    with open(told, "w") as sys.stderr:
        code = main(command)
    raise SystemExit(code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_run_that_ends_in_any_stage_resumes(
    number: signal.Signals, tmp_path: Path, seed: int
) -> None:
    broken = tmp_path / "run"
    command = _command(seed, broken)
    assert main(command) == 0
    whole = broken.rename(tmp_path / "whole")  # the checkpoint says where the labels were
    for stage in ("teacher", "teacher_labels", "classifier", "activation_labels", "student"):
        child = processes.start(_die, command, stage, number, tmp_path / "stderr")
        child.join()
        if number is signal.SIGKILL:
            assert child.exitcode == -signal.SIGKILL, stage
        else:
            assert child.exitcode == 143, stage
            assert f"To resume: cac-ext resume {broken}" in (tmp_path / "stderr").read_text()
        command = ["resume", str(broken)]
    assert main(command) == 0
    assert_same_run(whole, broken)
    assert_same_run(whole / "teacher", broken / "teacher")
    assert _masks(whole) == _masks(broken)
    for name in LABELS:
        path = Path(name, "pseudo_labels.json")
        assert (whole / path).read_text() == (broken / path).read_text()


def test_several_processes_make_them_together(tmp_path: Path, seed: int, monkeypatch) -> None:
    folder = tmp_path / "run"
    assert processes.run_together(2, main, _command(seed, folder)) == [0, 0]
    masks = _masks(folder)
    assert len(masks) == 12
    # The same labels and report as of one process.
    for name, command in (
        ("teacher_labels", ["self-training", "make-labels", str(folder / "teacher")]),
        ("activation_labels", ["weak", "make-labels", str(folder / "classifier")]),
    ):
        alone = tmp_path / name
        assert main([*command, "--output", str(alone)]) == 0
        assert len(list(alone.glob("*.png"))) == 6
        assert {f"{name}/{x.name}": x.read_bytes() for x in alone.glob("*.png")}.items() <= (
            masks.items()
        )
        path = Path(name, "pseudo_labels.json")
        assert (folder / path).read_text() == (tmp_path / path).read_text()

    # `compare` too, where runs share the labels.
    command = ["compare", "synthetic", *TINY, "--methods", "sup_only,self_training"]
    assert processes.run_together(2, main, [*command, "--folder", str(tmp_path / "both")]) == [0, 0]
    assert len(list((tmp_path / "both" / "teacher-labels-seed0").glob("*.png"))) == 6


def test_a_teacher_s_labels_are_made_from_the_command_line(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    teacher = tmp_path / "teacher"
    overrides = [*TINY, f"seed={seed % 10**6}", "method.unsupervised_weight=0"]
    assert main(["train", "synthetic", *overrides, "--folder", str(teacher)]) == 0
    assert main(["self-training", "make-labels", str(teacher)]) == 0
    told = capsys.readouterr().out
    masks = teacher / "pseudo_labels"
    assert f"{masks}: 6 images" in told
    assert f"self_training.pseudo_labels={masks}" in told

    # They are the classes of which the teacher is sure.
    run = load_run(teacher)
    images = build_datasets(run.config.data).unlabelled
    network = run.network
    sure, agree = 0, 0
    for index in range(6):
        sample = images[index]
        confidences, expected = predict_logits(network, sample["image"])[0].softmax(0).max(0)
        expected[confidences <= 0.2] = 255
        mask = torch.from_numpy(np.array(Image.open(masks / f"{sample['name']}.png")))
        assert torch.equal(mask, expected.byte())
        sure += int((mask != 255).sum())
        agree += int((mask == images.known_mask(index)).sum())
    report = json.loads((masks / "pseudo_labels.json").read_text())["report"]
    assert report["labelled"] == pytest.approx(sure / (6 * 48 * 48))
    assert report["accuracy"] == pytest.approx(agree / sure)

    # Another threshold gives other labels, which need another folder.
    strict = ["self-training", "make-labels", str(teacher)]
    strict += ["self_training.confidence_threshold=0.9999"]
    assert main(strict) == 2
    message = capsys.readouterr().err
    assert "confidence_threshold 0.2" in message
    assert "take another folder" in message
    assert main([*strict, "--output", str(tmp_path / "strict")]) == 0
    assert ": 6 images, 0.0 % of the pixels labelled" in capsys.readouterr().out

    student = ["train", "synthetic", *overrides, f"self_training.pseudo_labels={masks}"]
    assert main([*student, "--folder", str(tmp_path / "student")]) == 0
    assert main(["self-training", "make-labels", str(masks)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["self-training", "make-labels", str(teacher), "seed=3"]) == 2
    assert "self_training.confidence_threshold and device can be changed" in capsys.readouterr().err


def _outlive(end: str) -> str:
    with process_group("cpu") as group:
        try:
            group.together(lambda: _fail(end) if group.is_main else None)
        except ProcessError as error:
            return str(error)
        except ArithmeticError:
            return "failed"


def _fail(end: str) -> None:
    time.sleep(0.3)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ArithmeticError


def test_a_failure_of_one_process_reaches_those_who_wait(tmp_path: Path, seed: int) -> None:
    began = time.monotonic()
    failed, *told = processes.run_together(3, _outlive, "raise")
    assert failed == "failed"
    assert all("another process has ended" in message for message in told)
    assert time.monotonic() - began < 60

    # From the command line: the data of rank 0 alone fails.
    codes = processes.run_together(2, _train_without_classifier, _command(seed, tmp_path / "run"))
    assert codes == [2, 2]


def _train_without_classifier(command: list[str]) -> int:
    from cac_ext.train.errors import DataError
    from cac_ext.train.experiments import prepare

    def refuse(*arguments, **keywords):
        raise DataError("no such image")

    prepare.train_classifier = refuse
    return main(command)


def test_the_death_of_one_process_is_noticed_by_those_who_wait() -> None:
    (message,) = processes.run_together(2, _outlive, "kill", survivors=[1])
    assert "another process has ended" in message


def test_work_may_last_longer_than_collectives_wait(tmp_path: Path, monkeypatch) -> None:
    results = processes.run_together(2, _wait_long)
    assert results == [["slow", "quick"]] * 2


def _wait_long() -> list[str]:
    import datetime

    from torch import distributed

    init = distributed.init_process_group

    def hasty(backend: str) -> None:
        init(backend, timeout=datetime.timedelta(seconds=1))

    distributed.init_process_group = hasty
    with process_group("cpu") as group:

        def work() -> str:
            if not group.is_main:
                return "quick"
            time.sleep(3)
            return "slow"

        return group.together(work)


def test_a_student_needs_no_more_than_its_section(tmp_path: Path, seed: int) -> None:
    """The teacher of a comparison is its `sup_only`, whatever else the configuration says."""
    command = ["compare", "synthetic", *TINY, "--methods", "sup_only,self_training"]
    command += ["self_training.confidence_threshold=0.3", "weak.image_labels=labels.txt"]
    assert main([*command, "--folder", str(tmp_path)]) == 0
    # Labels made with another threshold are not reused.
    shutil.rmtree(tmp_path / "self_training-seed0")
    command += ["self_training.confidence_threshold=0.6", "--folder", str(tmp_path)]
    assert main(command) == 2
