"""Error-Correcting Supervision: each loss by hand, the targets, and what learns from what."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from method_steps import random_labelled
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from cac_ext.train.config import load
from cac_ext.train.data.batches import LabelledBatch, WholeCropBatch
from cac_ext.train.experiments.tables import find_table
from cac_ext.train.methods import MethodContext, Phase, Step
from cac_ext.train.methods.corrector import Corrector
from cac_ext.train.methods.ecs import Ecs
from cac_ext.train.networks import build_network

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, SIZE = 3, 9
SMALL = ["network.width=16", f"augment.crop_size={SIZE}", "network.dropout=0"]


class Given(nn.Module):
    """A network, or a corrector, whose outputs are its parameter."""

    def __init__(self, outputs: Tensor, correct: int = CLASSES) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)
        self.correct = correct

    def forward(self, images: Tensor, probabilities: Tensor | None = None) -> Tensor:
        return self.outputs[: len(images)]


def make_ecs(*overrides: str, ignore_index: int = 255) -> Ecs:
    config = load("synthetic", [*SMALL, *overrides])
    splits = SimpleNamespace(num_classes=CLASSES, ignore_index=ignore_index)
    method = Ecs(MethodContext(config, splits, build_network(config.network, CLASSES)))
    for module in method.trained.values():
        module.train()
    return method


def crops_of(images: int, size: int = SIZE, valid: Tensor | None = None) -> WholeCropBatch:
    valid = torch.rand(images, size, size) < 0.8 if valid is None else valid
    none = torch.zeros(0, images, size, size, dtype=torch.bool)
    weak = torch.randn(images, 3, size, size)
    return WholeCropBatch(weak, weak.new_zeros(0, images, 3, size, size), valid, none)


def phases_of(method: Ecs, labelled: Any, crops: Any = None, iteration: int = 10**6) -> list[Phase]:
    """The phases of a step, by default behind the ramp; no optimizer steps in between."""
    batches = {"labelled": labelled} | ({} if crops is None else {"unlabelled": crops})
    return list(method.step(Step(iteration, batches, method.trained, lambda finite: True)))


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


def pixels(rows: list[list[float]]) -> Tensor:
    """Logits of an image of one row, ``[1, K, 1, W]``."""
    return torch.tensor(rows).T[None, :, None, :]


# Logits of four pixels; the last one is ignored. The segmenter says 0, 1, 2, 0.
SEGMENTER = [[2.0, 0.0, 1.0], [0.5, 1.5, 0.0], [0.0, 0.3, 0.9], [9.0, 0.0, 0.0]]
CORRECTOR = [[0.1, 0.2, 0.3, 2.0], [1.0, 0.0, 0.2, 0.4], [0.0, 0.1, 0.2, 0.3], [9.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("ignore_index", [255, CLASSES])  # K is also the corrector's "correct"
def test_the_losses_of_labelled_images_by_hand(ignore_index: int) -> None:
    truth = [0, 2, 2]  # right, wrong, right
    method = make_ecs("ecs.correction_weight=0.3", ignore_index=ignore_index)
    method.corrector = method.trained["corrector"] = Given(pixels(CORRECTOR))
    method.trained["network"] = Given(pixels(SEGMENTER))
    masks = torch.tensor([[[*truth, ignore_index]]])
    first, second = phases_of(method, LabelledBatch(torch.zeros(1, 3, 1, 4), masks))
    supervised = -sum(log_softmax(SEGMENTER[i])[truth[i]] for i in range(3)) / 3
    correction = -sum(log_softmax(CORRECTOR[i])[CLASSES] for i in range(3)) / 3
    verdicts = [CLASSES, 2, CLASSES]
    corrector = -sum(log_softmax(CORRECTOR[i])[verdicts[i]] for i in range(3)) / 3
    assert first.losses["supervised"].item() == pytest.approx(supervised, rel=1e-5)
    assert first.losses["correction"].item() == pytest.approx(correction, rel=1e-5)
    assert first.total.item() == pytest.approx(supervised + 0.3 * correction, rel=1e-5)
    assert first.optimizer == "network"
    assert second.total.item() == pytest.approx(corrector, rel=1e-5)
    assert second.optimizer == "corrector"
    # Verdicts: correct, class 0, correct.
    assert second.metrics["corrector_accuracy"].item() == pytest.approx(2 / 3)


def test_the_loss_of_unlabelled_images_by_hand() -> None:
    """Kept, amended to class 0, kept although the corrector is unsure, padding."""
    method = make_ecs("ecs.unlabelled_weight=0.7", "ecs.correction_weight=0")
    method.corrector = method.trained["corrector"] = Given(pixels(CORRECTOR))
    method.trained["network"] = Given(pixels(SEGMENTER).expand(2, -1, -1, -1).clone())
    labelled = LabelledBatch(torch.zeros(1, 3, 1, 4), torch.full((1, 1, 4), 255))
    valid = torch.tensor([[[True, True, True, False]]])
    none = torch.zeros(0, 1, 1, 4)
    crops = WholeCropBatch(torch.zeros(1, 3, 1, 4), none, valid, none)
    first, second = phases_of(method, labelled, crops)
    certainty = [math.exp(max(log_softmax(CORRECTOR[i]))) for i in range(3)]
    target = [0, 0, 2]
    expected = -sum(certainty[i] * log_softmax(SEGMENTER[i])[target[i]] for i in range(3)) / 3
    assert first.losses["unlabelled"].item() == pytest.approx(expected, rel=1e-5)
    assert first.losses["supervised"].item() == 0  # no known pixel
    assert first.total.item() == pytest.approx(0.7 * expected, rel=1e-5)
    assert first.metrics["certainty"].item() == pytest.approx(sum(certainty) / 3, rel=1e-5)
    assert first.metrics["amended_share"].item() == pytest.approx(1 / 3)
    assert second.total.item() == 0
    # The certainty and the target are constants: the gradient is that of a weighted cross entropy.
    (gradient,) = torch.autograd.grad(first.losses["unlabelled"], method.trained["network"].outputs)
    for i in range(3):
        for k in range(CLASSES):
            share = math.exp(log_softmax(SEGMENTER[i])[k]) - (k == target[i])
            expected = certainty[i] * share / 3
            assert gradient[1, k, 0, i].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert (gradient[1, :, 0, 3] == 0).all()
    assert (gradient[0] == 0).all()


def test_padding_and_ignored_pixels_count_nowhere(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_ecs()
    labelled, crops = random_labelled(2, SIZE, CLASSES), crops_of(2)
    outputs, verdicts = torch.randn(4, CLASSES, SIZE, SIZE), torch.randn(2, CLASSES + 1, SIZE, SIZE)
    masks = labelled.masks.clone()
    masks[:, ::2] = 255
    unseen = torch.cat([masks == 255, ~crops.valid])
    totals = []
    for change in (0.0, 5.0):
        for name, x, hidden in (
            ("network", outputs, unseen),
            ("corrector", verdicts, (masks == 255) & ~crops.valid),
        ):
            noise = change * torch.randn_like(x) * hidden[:, None]
            method.trained[name] = Given(x + noise)
        method.corrector = method.trained["corrector"]
        totals.append(
            [
                x.total.item()
                for x in phases_of(method, LabelledBatch(labelled.images, masks), crops)
            ]
        )
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor | None]:
    return list(
        torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    )


def test_each_loss_teaches_one_network_alone(seed: int) -> None:
    """The correction reaches the segmenter through its probabilities, never the corrector."""
    torch.manual_seed(seed)
    method = make_ecs()
    network, corrector = method.context.network, method.corrector
    first, second = phases_of(method, random_labelled(2, SIZE, CLASSES), crops_of(2))
    for name, loss in first.losses.items():
        assert any(x is not None and x.any() for x in gradients(loss, network)), name
        if loss.requires_grad:
            assert all(x is None for x in gradients(loss, corrector)), name
    assert all(x is None for x in gradients(second.total, network))
    assert all(x is not None and x.any() for x in gradients(second.total, corrector))
    assert all(parameter.requires_grad for parameter in corrector.parameters())


def test_optimizers_share_no_parameter_and_the_corrector_s_rate_decays() -> None:
    method = make_ecs("ecs.corrector_learning_rate=0.0005")
    optimizers = method.build_optimizers()
    owned = {
        name: {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, optimizer in optimizers.items()
    }
    assert owned["network"] == {id(p) for p in method.context.network.parameters()}
    assert owned["corrector"] == {id(p) for p in method.corrector.parameters()}
    (group,) = optimizers["corrector"].param_groups
    assert group["learning_rate"] == 0.0005


def test_both_weights_rise_and_a_void_step_changes_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_ecs()
    labelled, crops = random_labelled(2, SIZE, CLASSES), crops_of(2)
    first, _ = phases_of(method, labelled, crops, iteration=0)
    ramp = math.exp(-5)
    expected = first.losses["supervised"] + ramp * (
        0.1 * first.losses["correction"] + first.losses["unlabelled"]
    )
    assert first.total.item() == pytest.approx(expected.item(), rel=1e-5)
    batches = {"labelled": labelled, "unlabelled": crops}
    assert not list(method.step(Step(0, batches, method.trained, lambda finite: False)))


@pytest.mark.parametrize("size", [(1, 1), (7, 4), (33, 65)])
def test_the_corrector_takes_any_size_and_each_image_by_itself(
    size: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    corrector = Corrector(CLASSES)
    images, shares = torch.randn(2, 3, *size), torch.randn(2, CLASSES, *size).softmax(dim=1)
    logits = corrector(images, shares)
    assert logits.shape == (2, CLASSES + 1, *size)
    torch.testing.assert_close(corrector(images[:1], shares[:1]), logits[:1], rtol=1e-4, atol=1e-5)


def test_a_step_asks_for_no_value(tmp_path: Path) -> None:
    """On tensors without values; the host never waits for the device."""
    method = make_ecs()
    batches = random_labelled(2, SIZE, CLASSES), crops_of(2)
    with FakeTensorMode() as mode:
        for module in method.trained.values():
            for owner in module.modules():
                for tensors in (owner._parameters, owner._buffers):
                    tensors.update(pytree.tree_map_only(Tensor, mode.from_tensor, dict(tensors)))
        labelled, crops = pytree.tree_map_only(Tensor, mode.from_tensor, batches)
        step = Step(5, {"labelled": labelled, "unlabelled": crops}, method.trained, lambda x: True)
        count = 0
        for phase in method.step(step):
            phase.total.backward()
            count += 1
        assert count == 2


def test_the_row_of_table_1_trains_it() -> None:
    rows = [row for row in find_table("table1").rows if "ecs" in row.name]
    assert [row.paper for row in rows] == [None, 70.2, 72.6, 76.3]
    for row in rows:
        assert row.overrides is not None
        assert "method.name=ecs" in row.overrides
        assert row.title.startswith("ECS, DeepLabv3+ ResNet50")
