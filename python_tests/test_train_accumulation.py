"""Steps in several parts, and clipped gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
import torch
from dying_run import train_until
from tiny_run import TINY_RUN
from torch import nn

from cac_ext.train import loop
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError, NonFiniteError
from cac_ext.train.loop import train
from cac_ext.train.methods import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.optimizer import build_optimizer
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runs.nonfinite import NonFiniteGuard
from cac_ext.train.runtime.distributed import ALONE, process_group
from cac_ext.train.runtime.seeding import seeded

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

#: No dropout, ignored pixels or batch statistics: the mean of the parts is that of the whole.
EXACT = [
    *TINY_RUN,
    "network.dropout=0",
    "augment.labelled_scale=[1.0,1.0]",
    "schedule.labelled_batch=4",
    "schedule.unlabelled_batch=4",
]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    modules = read_checkpoint(folder / "checkpoint.pt")["modules"]
    return {f"{m}.{name}": x for m, weights in modules.items() for name, x in weights.items()}


def _train(folder: Path, *overrides: str) -> Path:
    train(load("synthetic", [*EXACT, *overrides]), folder, progress=False)
    return folder


def _train_entries(folder: Path) -> list[dict]:
    return [x for x in read_metrics(folder / "metrics.jsonl") if x["split"] == "train"]


def test_the_parts_hold_the_images_of_the_whole_batch(tmp_path: Path, monkeypatch) -> None:
    seen = {}
    take_step = loop.take_step

    def watched(method, state, batches, *rest):
        seen[state.iteration] = batches
        return take_step(method, state, batches, *rest)

    monkeypatch.setattr(loop, "take_step", watched)
    steps = []
    for parts in (1, 4):
        _train(tmp_path / f"{parts}", f"schedule.accumulation={parts}")
        assert all(len(batches) == parts for batches in seen.values())
        steps.append(dict(seen))
    for iteration, (whole,) in steps[0].items():
        for name, batch in whole.items():
            parts = [of_part[name] for of_part in steps[1][iteration]]
            if name == "labelled":
                assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
                assert torch.equal(torch.cat([part.masks for part in parts]), batch.masks)
            else:
                images = torch.cat([part.view2.images for part in parts])
                assert torch.equal(images, batch.view2.images)


def test_a_step_in_parts_is_that_of_the_whole_batch(tmp_path: Path, seed: int) -> None:
    settings = ("method.name=sup_only", f"seed={seed}", "schedule.epochs=3")
    whole = _train(tmp_path / "whole", *settings)
    parts = _train(tmp_path / "parts", *settings, "schedule.accumulation=2")
    for name, weight in _weights(whole).items():
        torch.testing.assert_close(_weights(parts)[name], weight, rtol=1e-3, atol=1e-5)
    losses = [[x["loss_supervised"] for x in _train_entries(f)] for f in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_bank_holds_the_negatives_of_as_many_images(tmp_path: Path) -> None:
    counts = []
    for parts in (1, 2):
        settings = ("method.selected_num=7", "method.step_save=1", "schedule.epochs=4")
        folder = _train(tmp_path / f"{parts}", *settings, f"schedule.accumulation={parts}")
        counts.append(_train_entries(folder)[-1]["negatives"])
    assert counts[0] == 2 * 2 * 7
    assert counts[1] == 2 * 2 * 2 * 4  # a part selects its share, rounded up


class TwoPhases(Method):
    """Two modules with an optimizer each. The second runs forward before the first one learns."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        with seeded(context.config.seed, "judge", 0):
            self.judge = nn.Conv2d(context.splits.num_classes, 1, 1)
        self.trained |= {"network": context.network, "judge": self.judge}

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        config = self.context.config.optimizer
        groups = {name: self.groups_of({name: module}) for name, module in self.trained.items()}
        return {name: build_optimizer(config, group) for name, group in groups.items()}

    def streams(self) -> dict[str, StreamRequest]:
        return self.supervised_streams()

    def step(self, step: Step) -> Iterator[Phase]:
        batch = step.batches["labelled"]
        logits = step.modules["network"](batch.images)
        judged = step.modules["judge"](logits.detach())
        loss, finite = self.supervised_loss(logits, batch.masks)
        if step.proceeds(finite):
            yield Phase(loss, {"supervised": loss})
            wrong = (logits.argmax(dim=1) != batch.masks)[:, None].float()
            yield Phase((judged - wrong).square().mean(), optimizer="judge")


def _two_phases(overrides: list[str], folder: Path) -> None:
    config = load("synthetic", overrides)
    with process_group(config.device):
        train(config, folder, progress=False, build=TwoPhases)


def test_two_processes_in_parts_train_as_one_does(tmp_path: Path, seed: int) -> None:
    """With two phases, the backward of a part comes after the forward of the next one."""
    overrides = [*EXACT, f"seed={seed}", "optimizer.clip_norm=5", "schedule.epochs=3"]
    in_parts = [*overrides, "schedule.accumulation=2"]
    _two_phases(overrides, tmp_path / "whole")
    _two_phases(in_parts, tmp_path / "one")
    processes.run_together(2, _two_phases, in_parts, tmp_path / "two")
    expected = _weights(tmp_path / "whole")
    assert any(name.startswith("judge.") for name in expected)
    for folder in (tmp_path / "one", tmp_path / "two"):
        found = _weights(folder)
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
        for one, other in zip(*map(_train_entries, (tmp_path / "whole", folder)), strict=True):
            for name in ("gradient_norm", "gradient_norm_judge", "loss"):
                assert other[name] == pytest.approx(one[name], rel=1e-3), name


def test_two_processes_train_cac_in_parts_as_one_does(tmp_path: Path, seed: int) -> None:
    overrides = [*EXACT, f"seed={seed}", "schedule.accumulation=2", "optimizer.clip_norm=5"]
    overrides += ["method.confidence_threshold=0"]
    train_until(overrides, tmp_path / "one")
    processes.run_together(2, train_until, overrides, tmp_path / "two")
    entries = [_train_entries(tmp_path / name) for name in ("one", "two")]
    for one, two in zip(*entries, strict=True):
        for name in one.keys() & {"loss_supervised", "negatives"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3), name


def test_batches_that_cannot_be_divided_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labelled_batch is 4.*3 parts.*multiple of 3"):
        _train(tmp_path, "schedule.accumulation=3")


def test_a_part_that_is_not_finite_voids_the_step_and_all_parts_are_kept(
    tmp_path: Path, monkeypatch
) -> None:
    take_step = loop.take_step

    def spoiled(method, state, batches, *rest):
        if state.iteration == 1:
            batches[1]["labelled"].images[0, 0, 0, 0] = torch.nan
        return take_step(method, state, batches, *rest)

    monkeypatch.setattr(loop, "take_step", spoiled)
    settings = ("method.name=sup_only", "schedule.accumulation=2")
    with pytest.raises(NonFiniteError, match="iteration 1 is not finite"):
        _train(tmp_path / "stop", *settings)
    kept = torch.load(tmp_path / "stop/nonfinite-1-rank0.pt", weights_only=True)["batches"]
    assert [batch["images"].isfinite().all().item() for batch in kept.values()] == [True, False]
    with pytest.warns(UserWarning, match="skipped"):
        _train(tmp_path / "skip", *settings, "run.nonfinite=skip")
    assert all(weight.isfinite().all() for weight in _weights(tmp_path / "skip").values())


@pytest.mark.parametrize("scaled", [False, True])
def test_a_long_gradient_is_scaled_to_the_norm_and_a_short_one_kept(
    scaled: bool, tmp_path: Path, seed: int
) -> None:
    torch.manual_seed(seed)
    gradients = [torch.randn(3, 4), torch.randn(5)]
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    for clip, factor in ((norm / 4, 0.25), (norm * 2, 1.0), (None, 1.0)):
        module = nn.ParameterList([torch.zeros(3, 4), torch.zeros(5), torch.zeros(2)])
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
        for parameter, gradient in zip(module, gradients, strict=False):
            parameter.grad = gradient * (64 if scaled else 1)
        scaler.scale(torch.zeros(()))  # as a backward would begin
        guard = NonFiniteGuard(load("synthetic").run, tmp_path, {"module": module}, ALONE)
        assert guard.step_optimizer(optimizer, scaler, clip)
        for parameter, gradient in zip(module, gradients, strict=False):
            torch.testing.assert_close(parameter.detach(), -factor * gradient)
        if clip is None:
            assert guard.gradient_norm is None
        else:
            assert guard.gradient_norm.item() == pytest.approx(norm, rel=1e-5)


def test_a_norm_that_nothing_reaches_changes_no_bit_and_is_logged(tmp_path: Path) -> None:
    settings = ("method.confidence_threshold=0.1",)
    plain = _train(tmp_path / "plain", *settings)
    clipped = _train(tmp_path / "clipped", *settings, "optimizer.clip_norm=1000000")
    for name, weight in _weights(plain).items():
        assert torch.equal(_weights(clipped)[name], weight)
    assert all(0 < x["gradient_norm"] < 1e6 for x in _train_entries(clipped))
    assert all("gradient_norm" not in x for x in _train_entries(plain))


def test_gradients_are_averaged_and_those_of_no_process_stay_away(seed: int) -> None:
    """One parameter is used by both processes, one by the first alone, one by none."""
    (both, first, none), other = processes.run_together(2, _averaged, seed)
    assert [both, first, none] == other
    expected = [_gradient(seed, rank, 0) for rank in range(2)]
    torch.testing.assert_close(torch.tensor(both), sum(expected) / 2)
    torch.testing.assert_close(torch.tensor(first), _gradient(seed, 0, 1) / 2)
    assert none is None


def _gradient(seed: int, rank: int, parameter: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 10 * rank + parameter)
    return torch.randn(3, 2, 4, 5, generator=generator)


def _averaged(seed: int) -> list[list | None]:
    with process_group("cpu") as group:
        parameters = [nn.Parameter(torch.zeros(3, 2, 4, 5)) for _ in range(3)]
        for index in range(2 - group.rank):
            # Another layout in memory, as convolutions have it.
            gradient = _gradient(seed, group.rank, index)
            parameters[index].grad = gradient.to(memory_format=torch.channels_last)
        group.average_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]
