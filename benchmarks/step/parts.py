"""Divides the steps of a training into network, losses, optimizer, loading and the rest.

torch's profiler reports each operation with its duration and its parent. The operations of a module
that is called in training belong to the network, a backward operation to the part whose forward
operation made it. The rest is everything else in a step: gathering and copying rows, the memory
bank, metrics, checks for nan, the log, and Python itself. The profiler makes it look longer.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from cac_ext.train.config import Config
from cac_ext.train.loop import train
from cac_ext.train.methods import MethodContext, Phase, Step
from cac_ext.train.methods.cac import Cac

NETWORK, NETWORK_BACKWARD = "network, forward", "network, backward"
SUPERVISED, CONTRASTIVE, SORTING = "cross entropy", "contrastive loss", "sorting of negatives"
OPTIMIZER, LOADING, REST = "optimizer", "loading of images", "the rest"
#: In the order of the table. The last two are what a step spends beside network and losses.
PARTS = (NETWORK, NETWORK_BACKWARD, OPTIMIZER, SUPERVISED, CONTRASTIVE, LOADING, SORTING, REST)

_STEP, _MODULE = "benchmarks: step", "benchmarks: module"
_BACKWARD = "autograd::engine::evaluate_function: "
#: Beginnings of the names of operations.
_FORWARD_PARTS = {
    _MODULE: NETWORK,
    "Optimizer.": OPTIMIZER,
    "aten::cross_entropy_loss": SUPERVISED,
    "enumerate(DataLoader)": LOADING,
    "cac_ext::prepare_": SORTING,
    "cac_ext::": CONTRASTIVE,
    "DirectionalContrastiveLoss": CONTRASTIVE,
}


class Span(Protocol):
    """What this module reads of torch's `FunctionEvent`."""

    name: str
    sequence_nr: int
    cpu_parent: Any
    time_range: Any


class _Watched(Cac):
    """Marks each step, and the calls of the trained modules, for the profiler."""

    def __init__(self, context: MethodContext, profiler: Any) -> None:
        super().__init__(context)
        self._profiler = profiler
        self._step: record_function | None = None
        self._call: record_function | None = None
        for module in self.trained.values():
            module.register_forward_pre_hook(self._begin_call)
            module.register_forward_hook(self._end_call)

    def step(self, step: Step) -> Iterator[Phase]:
        if self._step is not None:
            self._step.__exit__(None, None, None)
        self._profiler.step()
        self._step = record_function(_STEP)
        self._step.__enter__()
        yield from super().step(step)

    def _begin_call(self, module: nn.Module, arguments: Any) -> None:
        self._call = record_function(_MODULE)
        self._call.__enter__()

    def _end_call(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._call is not None:
            self._call.__exit__(None, None, None)


def profile_training(config: Config, warm_up: int, steps: int) -> list[Span]:
    """The operations of ``steps`` steps of a training, behind ``warm_up`` others.

    ``config`` must have ``warm_up + steps + 1`` iterations, all with unlabelled images.
    """
    activities = [ProfilerActivity.CPU]
    plan = schedule(wait=max(warm_up - 1, 0), warmup=1, active=steps, repeat=1)
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(activities=activities, schedule=plan) as profiler,
    ):
        train(
            config, Path(folder), progress=False, build=lambda context: _Watched(context, profiler)
        )
        return list(profiler.events() or [])


def divide(spans: Sequence[Span]) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Seconds of each part in each step, and of each operation of the rest in all steps."""
    creators = _creators(spans)
    of_step: dict[int, list[Span]] = defaultdict(list)  # the outermost operations of each step
    for span in spans:
        if span.cpu_parent is not None and span.cpu_parent.name == _STEP:
            of_step[id(span.cpu_parent)].append(span)
    steps: list[dict[str, float]] = []
    rest: dict[str, float] = defaultdict(float)
    for step in sorted((s for s in spans if s.name == _STEP), key=lambda s: s.time_range.start):
        seconds = dict.fromkeys(PARTS, 0.0)
        inner = sorted(of_step[id(step)], key=lambda span: span.time_range.start)
        if not inner:  # the profiler ended before it
            continue
        for span, following in zip(inner, [*inner[1:], None], strict=True):
            part = _part_of(span, creators)
            end = span.time_range.end
            if following is not None and _is_backward(span) and _is_backward(following):
                end = following.time_range.start  # the engine between two of its nodes
            seconds[part] += (end - span.time_range.start) / 1e6
            if part == REST:
                rest[span.name.removeprefix(_BACKWARD)] += (end - span.time_range.start) / 1e6
        whole = step.time_range.elapsed_us() / 1e6
        between = whole - sum(seconds.values())
        seconds[REST] += between
        rest["Python, between operations"] += between
        steps.append(seconds)
    return steps, dict(rest)


def _creators(spans: Sequence[Span]) -> dict[int, Span]:
    """Sequence number -> the forward operation whose backward has it: the last that began."""
    found: dict[int, Span] = {}
    for span in sorted(spans, key=lambda span: span.time_range.start):
        if span.sequence_nr >= 0 and "Backward" not in span.name and not _is_backward(span):
            found[span.sequence_nr] = span
    return found


def _is_backward(span: Span) -> bool:
    return span.name.startswith(_BACKWARD)


def _part_of(span: Span, creators: dict[int, Span]) -> str:
    if not _is_backward(span):
        return _forward_part(span)
    if span.name.endswith("AccumulateGrad"):
        return NETWORK_BACKWARD
    creator = creators.get(span.sequence_nr)
    part = REST if creator is None else _forward_part(creator)
    return NETWORK_BACKWARD if part == NETWORK else part


def _forward_part(span: Span) -> str:
    inner: Span | None = span
    while inner is not None:
        for beginning, part in _FORWARD_PARTS.items():
            if inner.name.startswith(beginning):
                return part
        inner = inner.cpu_parent
    return REST
