"""A custom method trains, resumes bit for bit, and runs in several processes: the example."""

from __future__ import annotations

import os
from pathlib import Path

import processes
import pytest
import torch
from dying_run import assert_resumes_bit_for_bit, train_until
from tiny_run import TINY_RUN

from cac_ext.train import loop
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data.whole_crops import WholeCropAugment
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.methods import Method, check_method
from cac_ext.train.runs.checkpoint import read_checkpoint, weights_of_network
from cac_ext.train.runs.folder import load_run
from cac_ext.train.runs.log import read_metrics

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TINY = [
    *TINY_RUN,
    "schedule.epochs=3",
    "network.dropout=0.5",
    "method.name=mean_teacher:MeanTeacher",
    "method.options.decay=0.9",
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)


def test_the_example_trains_and_its_teacher_is_evaluated(tmp_path: Path, capsys) -> None:
    folder = str(tmp_path / "run")
    assert main(["train", "synthetic", *TINY, "--folder", folder]) == 0
    assert "mIoU" in capsys.readouterr().out
    steps = [x for x in read_metrics(tmp_path / "run/metrics.jsonl") if x["split"] == "train"]
    assert ["loss_consistency" in step for step in steps] == [False] * 2 + [True] * 4
    assert all(step["loss_consistency"] > 0 for step in steps[2:])
    state = read_checkpoint(tmp_path / "run/checkpoint.pt")
    teacher, student = state["modules"]["teacher"], state["modules"]["student"]
    assert any(not torch.equal(teacher[name], student[name]) for name in teacher)
    for name, weight in weights_of_network(state).items():
        assert torch.equal(weight, teacher[name])
    for name, weight in load_run(tmp_path / "run").network.state_dict().items():
        assert torch.equal(weight, teacher[name])
    assert main(["evaluate", folder]) == 0


def test_the_teacher_is_the_running_mean_of_the_student(tmp_path: Path, monkeypatch) -> None:
    students, take_step = [], loop.take_step

    def watched(method, *rest):
        if not students:
            students.append([p.detach().clone() for p in method.student.parameters()])
        phases = take_step(method, *rest)
        students.append([p.detach().clone() for p in method.student.parameters()])
        watched.teacher = list(method.teacher.parameters())
        return phases

    monkeypatch.setattr(loop, "take_step", watched)
    train(load("synthetic", TINY), tmp_path, progress=False)
    mean = students[0]
    for iteration, student in enumerate(students[1:]):
        decay = min(1 - 1 / (iteration + 1), 0.9)
        mean = [decay * m + (1 - decay) * p for m, p in zip(mean, student, strict=True)]
    for expected, found in zip(mean, watched.teacher, strict=True):
        torch.testing.assert_close(found, expected)


def _train(overrides: list[str], folder: Path, dies_at: int | None = None) -> None:
    os.chdir(EXAMPLES)  # in a child process too
    train_until(overrides, folder, dies_at)


def test_the_example_resumes_bit_for_bit_after_sigkill(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}"]
    assert_resumes_bit_for_bit(overrides, tmp_path, _train)


def test_two_processes_train_the_example_as_one_does(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}", "network.dropout=0"]
    _train(overrides, tmp_path / "one")
    processes.run_together(2, _train, overrides, tmp_path / "two")
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoint.pt")["modules"]["teacher"]
        for name in ("one", "two")
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)


def test_a_method_that_breaks_the_contract_is_named(monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.name: 'cacc' is unknown.*did you mean 'cac'"):
        check_method(load("synthetic", ["method.name=cacc"]))
    with pytest.raises(ConfigError, match=r"method\.options is for custom methods"):
        train(load("synthetic", [*TINY_RUN, "method.options.x=1"]), tmp_path, progress=False)

    class Nothing(Method):
        def streams(self):
            return {}

        def step(self, step):
            yield from ()

    with pytest.raises(TypeError, match=r"trains nothing: put its modules into Method\.trained"):
        train(load("synthetic", TINY_RUN), tmp_path, progress=False, build=Nothing)


def test_whole_crops_show_one_part_and_draw_as_asked(seed: int) -> None:
    torch.manual_seed(seed)
    config = load("synthetic", ["augment.crop_size=33", "augment.jitter=1"]).augment
    image = torch.randint(0, 256, (3, 20, 60), dtype=torch.uint8)
    plain = load("synthetic", ["augment.crop_size=33", *(f"augment.{x}=0" for x in NO_COLORS)])
    augment = WholeCropAugment(plain.augment, strong=2, cutmix=1.0)
    shares = []
    for _ in range(20):
        sample = augment({"image": image, "name": "x"})
        assert torch.equal(sample.strong[0], sample.weak)  # nothing but the part is drawn
        assert (sample.weak[:, ~sample.valid] == 0).all()
        shares += sample.cutmix.float().mean(dim=(1, 2)).tolist()
    assert min(shares) > 0.005
    assert max(shares) < 0.45
    colored = WholeCropAugment(config, strong=1)({"image": image, "name": "x"})
    assert not colored.cutmix.any()
    assert not torch.equal(colored.strong[0], colored.weak)


NO_COLORS = ("jitter", "gray", "blur")
