"""On a GPU the host runs ahead of the device: no step of training asks for a tensor's value.

The step runs on tensors without values (`FakeTensorMode`). They raise where a value is asked for,
or a shape that depends on values: there the host would wait for the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crop_steps
import pytest
import torch
from method_steps import make_cac, random_labelled, random_pairs
from test_method_cct import make_cct, random_crops
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

import cac_ext
from cac_ext.train.config import load
from cac_ext.train.methods import Method
from cac_ext.train.methods.cac import Cac
from cac_ext.train.runs.checkpoint import TrainingState
from cac_ext.train.runs.nonfinite import NonFiniteGuard
from cac_ext.train.runtime.distributed import ALONE
from cac_ext.train.step import take_step

SIZE, CLASSES = 33, 3
SETTINGS = {
    "default": [],
    "bank": ["method.selected_num=20", "method.step_save=2"],
    "active": ["method.normalizer=active"],
    "l2": ["method.loss=l2"],
    "not_directional": ["method.directional=false", "method.negative_sampling=false"],
    "precision": ["run.negative_precision=true"],
    "adamw": ["optimizer.name=adamw"],
    "clipped": ["optimizer.clip_norm=1"],
    "supervised": [
        "supervised.class_weights=[1,2,3]",
        "supervised.ohem_threshold=0.7",
        "supervised.dice_weight=1",
    ],
    "weak": ["weak.pseudo_labels=masks", "run.precision=bf16"],
}


def make_method(setting: str) -> Cac:
    size = ["network.width=16", f"augment.crop_size={SIZE}"]
    return make_cac(load("synthetic", [*size, *SETTINGS[setting]]), CLASSES)


def make_batches(method: Cac) -> dict[str, Any]:
    side = method.model.network.pooled_grid.size(SIZE)
    overlaps = tuple(torch.randperm(2 * side * side)[: side * side] for _ in range(2))
    valid = tuple(torch.rand(2, 2, side, side) < 0.8)
    masks = tuple(torch.randint(CLASSES, (2, 2, SIZE, SIZE)))
    truths = tuple(torch.randint(-1, CLASSES, (2, 2, side, side)).int())
    pairs = random_pairs(2, SIZE, overlaps, valid, masks=masks, truths=truths)
    return {"labelled": random_labelled(2, SIZE, CLASSES), "crop_pairs": pairs}


def take_steps_without_values(
    method: Method,
    folder: Path,
    *,
    batches: dict[str, Any] | None = None,
    phases: int = 1,
    late: bool = True,
) -> None:
    """Two steps, on the shapes alone; the second finds momentum and a filled bank."""
    if batches is None:
        assert isinstance(method, Cac)
        batches = make_batches(method)
    with FakeTensorMode() as mode:
        for owner in nn.ModuleDict({**method.trained, **method.kept}).modules():
            for tensors in (owner._parameters, owner._buffers):
                tensors.update(pytree.tree_map_only(Tensor, mode.from_tensor, dict(tensors)))
        optimizers = method.build_optimizers()
        scalers = {name: torch.amp.GradScaler("cpu", enabled=False) for name in optimizers}
        config = method.context.config
        state = TrainingState(config, method.trained, optimizers, scalers, method)
        fakes = pytree.tree_map_only(Tensor, mode.from_tensor, batches)
        for _ in range(2):
            # `late` is what the guard is on a GPU. A new one each time: the answer on the last step
            # is fetched by an event, while the next step is prepared.
            guard = NonFiniteGuard(config.run, folder, state.modules, ALONE, late=late)
            device = torch.device("cpu")
            assert len(take_step(method, state, [fakes], state.modules, guard, device)) == phases


@pytest.mark.parametrize("added", ["false", "true"])
@pytest.mark.parametrize("name", crop_steps.VERSIONS)
def test_a_step_on_whole_crops_asks_for_no_value(name: str, added: str, tmp_path: Path) -> None:
    method = crop_steps.make_method(name, f"method.directional_contrast={added}")
    batches = crop_steps.random_batches(crop_steps.VERSIONS[name], pairs=added == "true")
    take_steps_without_values(method, tmp_path, batches=batches)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_asks_for_no_value(setting: str, tmp_path: Path) -> None:
    take_steps_without_values(make_method(setting), tmp_path)


@pytest.mark.parametrize("setting", [[], ["weak.pseudo_labels=masks", "run.precision=bf16"]])
def test_a_step_of_cct_asks_for_no_value(setting: list[str], tmp_path: Path) -> None:
    """All seven perturbations: objects and their boxes are found on the device."""
    config = load("synthetic", ["network.width=16", f"augment.crop_size={SIZE}", *setting])
    method = make_cct(config, classes=CLASSES)
    crops = random_crops(masks=bool(setting))
    batches = {"labelled": random_labelled(2, SIZE, CLASSES), "unlabelled": crops}
    take_steps_without_values(method, tmp_path, batches=batches)


def test_waiting_for_a_value_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(DataDependentOutputException):  # asks at once whether the loss is finite
        take_steps_without_values(make_method("default"), tmp_path, late=False)


def test_waiting_for_a_shape_would_be_noticed(tmp_path: Path) -> None:
    def filtered(*arguments: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        negatives, labels = arguments[6:]
        known = labels >= 0
        return cac_ext.directional_contrastive_loss(
            *arguments[:6], negatives[known], labels[known], **options
        )

    method = make_method("default")
    method.contrast.loss = filtered
    with pytest.raises(DynamicOutputShapeException):
        take_steps_without_values(method, tmp_path)
