"""A training whose steps are watched: weights before and after, losses, device and layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cac_ext.train import loop
from cac_ext.train.config import load
from cac_ext.train.loop import train
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runtime.distributed import process_group


@dataclass
class Watched:
    """Losses of all steps, the trained parameters before and after, and how each step ran."""

    losses: list[float]
    before: dict[str, Tensor]  # on the CPU, as `after`
    after: dict[str, Tensor]
    devices: list[str]
    channels_last: list[bool]  # images and the network's kernels alike
    compiled: list[bool]

    def update(self) -> Tensor:
        """The change of all parameters, in a row."""
        return torch.cat([(self.after[x] - self.before[x]).flatten() for x in self.before])


@dataclass
class _Spy:
    steps: list[tuple[str, bool, bool]] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, model: torch.nn.Module, images: Tensor) -> None:
        if not self.before:
            parameters = model.named_parameters()
            self.before = {x: y.detach().cpu().clone() for x, y in parameters}
        kernels = [x for x in model.network.parameters() if x.ndim == 4 and x.shape[2] > 1]
        layouts = {
            x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            for x in (images, *kernels)
            if min(x.shape[1:3]) > 1
        }
        assert len(layouts) == 1, "images and kernels have different layouts"
        is_compiled = getattr(model, "_compiled_call_impl", None) is not None
        self.steps.append((images.device.type, layouts.pop(), is_compiled))


def watched_training(folder: Path, overrides: list[str], device: str = "cpu") -> Watched:
    """Trains on the built-in data into ``folder``."""
    spy, take_step = _Spy(), loop.take_step

    def watched(method, state, batches, *rest):
        spy(method.model, batches[0]["labelled"].images)
        return take_step(method, state, batches, *rest)

    with pytest.MonkeyPatch.context() as patch, process_group(device):
        patch.setattr(loop, "take_step", watched)
        train(load("synthetic", [*overrides, f"device={device}"]), folder, progress=False)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    state = read_checkpoint(folder / "checkpoint.pt")["modules"]["model"]
    after = {x: state[x].cpu() for x in spy.before}
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    return Watched(losses, spy.before, after, *map(list, zip(*spy.steps, strict=True)))


def assert_same_training(
    one: Watched, other: Watched, *, losses: float, update: float, steps: int | None = None
) -> None:
    """Both trainings are the same within relative tolerances.

    Args:
        one, other: both start from the same parameters.
        losses: tolerance of each loss.
        update: tolerance of the change of all parameters, in norm.
        steps: how many losses are compared; None for all.
    """
    for name, tensor in one.before.items():
        assert torch.equal(other.before[name], tensor), name
    assert len(one.losses) == len(other.losses) > 0
    assert other.losses[:steps] == pytest.approx(one.losses[:steps], rel=losses)
    expected = one.update()
    assert expected.norm() > 0
    assert (other.update() - expected).norm() <= update * expected.norm()


def holds_for_a_draw(seed: int, check: Callable[[int], None], draws: int = 4) -> None:
    """``check(seed)`` for the first of some seeds that passes.

    Rounding may carry a pixel over a threshold, so that it is an anchor in one of two trainings
    alone, and their losses are then different ones. That is rare; a fault shows in every draw.
    """
    for attempt in range(draws):
        try:
            return check(seed + attempt)
        except AssertionError:
            if attempt == draws - 1:
                raise
    return None
