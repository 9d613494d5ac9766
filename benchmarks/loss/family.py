"""``python -m benchmarks loss --family``: losses of the field, ours against whole matrices.

Each is measured as its users write it in PyTorch, that under torch.compile, and as one call of
ours, at the shapes of its official code. "both" is loss and gradients to everything that learns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import cac_ext
from benchmarks.loss.table import describe_run
from benchmarks.measure import units
from benchmarks.measure.memory import first_line, limited_memory
from benchmarks.measure.memory_probe import PeakGrowth
from benchmarks.measure.results import Kept, Results, Row
from benchmarks.measure.timing import Clock
from cac_ext.train.runtime.memory import is_out_of_memory
from cac_ext.train.runtime.text_tables import aligned_table

TEMPERATURE = 0.1


@dataclass
class FamilyInputs:
    """Rows and labels of one loss; ``keys`` may be the anchors themselves."""

    anchors: Tensor  # [A, C]
    positives: Tensor  # [A, C], read by losses with one positive
    keys: Tensor  # [N, C]
    anchor_labels: Tensor  # [A]
    key_labels: Tensor  # [N]


FamilyLoss = Callable[[FamilyInputs], Tensor]


@dataclass(frozen=True)
class FamilyCase:
    """A loss at the shape of its official code."""

    name: str
    ours: FamilyLoss
    eager: FamilyLoss
    A: int
    N: int  # as many as A: the keys have the anchors' labels
    C: int
    K: int
    keys_learn: bool
    keys_are_anchors: bool = False


def _own(inputs: FamilyInputs) -> Tensor | None:
    """Each anchor's own key, if the keys are the anchors."""
    is_same = inputs.keys is inputs.anchors
    return torch.arange(len(inputs.keys), device=inputs.keys.device) if is_same else None


def _scores(inputs: FamilyInputs) -> Tensor:
    return F.normalize(inputs.anchors) @ F.normalize(inputs.keys).T / TEMPERATURE


def _positive_pairs(inputs: FamilyInputs) -> Tensor:
    positive = inputs.anchor_labels[:, None] == inputs.key_labels
    own = _own(inputs)
    return positive if own is None else positive & (own != own[:, None])


def eager_supcon(inputs: FamilyInputs) -> Tensor:
    scores, positive, own = _scores(inputs), _positive_pairs(inputs), _own(inputs)
    others = scores if own is None else scores.masked_fill(own == own[:, None], -math.inf)
    log_p = scores - others.logsumexp(1, keepdim=True)
    return -((log_p * positive).sum(1) / positive.sum(1).clamp(min=1)).mean()


def eager_pairwise(inputs: FamilyInputs) -> Tensor:
    scores, positive = _scores(inputs), _positive_pairs(inputs)
    same = inputs.anchor_labels[:, None] == inputs.key_labels
    negatives = scores.masked_fill(same, -math.inf).logsumexp(1, keepdim=True)
    terms = F.softplus(negatives - scores) * positive
    return (terms.sum(1) / positive.sum(1).clamp(min=1)).mean()


def _eager_masked(mask: str) -> FamilyLoss:
    def loss(inputs: FamilyInputs) -> Tensor:
        scores = _scores(inputs)
        if mask != "all":
            equal = inputs.anchor_labels[:, None] == inputs.key_labels
            scores = scores.masked_fill(equal if mask == "different" else ~equal, -math.inf)
        positive = F.cosine_similarity(inputs.anchors, inputs.positives) / TEMPERATURE
        logits = torch.cat([positive[:, None], scores], dim=1)
        first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, first)

    return loss


def _our_supervised(form: str) -> FamilyLoss:
    def loss(inputs: FamilyInputs) -> Tensor:
        return cac_ext.supervised_contrastive_loss(
            inputs.anchors,
            inputs.keys,
            inputs.anchor_labels,
            inputs.key_labels,
            form=form,
            exclude=_own(inputs),
            temperature=TEMPERATURE,
        ).mean()

    return loss


def _our_masked(mask: str) -> FamilyLoss:
    def loss(inputs: FamilyInputs) -> Tensor:
        return cac_ext.masked_contrastive_loss(
            inputs.anchors,
            inputs.positives,
            inputs.keys,
            inputs.anchor_labels,
            inputs.key_labels,
            mask=mask,
            temperature=TEMPERATURE,
        ).mean()

    return loss


_SUPCON = _our_supervised("supcon"), eager_supcon
_PAIRWISE = _our_supervised("pairwise"), eager_pairwise
_SAME = _our_masked("same"), _eager_masked("same")
_ALL = _our_masked("all"), _eager_masked("all")
_DIFFERENT = _our_masked("different"), _eager_masked("different")

CASES = [
    FamilyCase("supcon", *_SUPCON, 2_048, 2_048, 128, 1_000, True, keys_are_anchors=True),
    FamilyCase("contrastive-seg", *_PAIRWISE, 1_024, 1_024, 256, 19, True, keys_are_anchors=True),
    FamilyCase("multi-scale", *_PAIRWISE, 10_000, 10_000, 256, 19, True, keys_are_anchors=True),
    FamilyCase("seg-memory", *_PAIRWISE, A=1_024, N=190_000, C=256, K=19, keys_learn=False),
    FamilyCase("dense-cl", *_ALL, A=6_272, N=65_536, C=128, K=1, keys_learn=False),
    FamilyCase("clip2scene", *_DIFFERENT, A=4_096, N=4_096, C=64, K=17, keys_learn=True),
    FamilyCase("u2pl", *_SAME, A=4_864, N=200_000, C=256, K=19, keys_learn=False),
    FamilyCase("dinov2", *_DIFFERENT, A=4_096, N=16_384, C=768, K=21, keys_learn=True),
]


def make_inputs(
    case: FamilyCase, seed: int, device: torch.device, dtype: torch.dtype
) -> FamilyInputs:
    """Rows that are clustered by label."""
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int, labels: Tensor) -> Tensor:
        noise = torch.randn(count, case.C, generator=generator)
        return (centers[labels] + noise).to(device, dtype)

    centers = torch.randn(case.K, case.C, generator=generator)
    labels = torch.randint(case.K, (case.A,), generator=generator)
    anchors = rows(case.A, labels)
    key_labels = (
        labels if case.N == case.A else torch.randint(case.K, (case.N,), generator=generator)
    )
    return FamilyInputs(
        anchors,
        rows(case.A, labels),
        anchors if case.keys_are_anchors else rows(case.N, key_labels),
        labels.to(device),
        key_labels.to(device),
    )


def _learning(case: FamilyCase, inputs: FamilyInputs) -> FamilyInputs:
    """The same as leaves that require gradients."""
    anchors = inputs.anchors.detach().requires_grad_()
    keys = anchors
    if inputs.keys is not inputs.anchors:
        keys = inputs.keys.detach().requires_grad_(case.keys_learn)
    positives = inputs.positives.detach().requires_grad_(case.keys_learn)
    return FamilyInputs(anchors, positives, keys, inputs.anchor_labels, inputs.key_labels)


def _time(loss: FamilyLoss, case: FamilyCase, inputs: FamilyInputs, phase: str) -> float:
    clock = Clock(inputs.anchors.device)
    if phase == "forward":
        with torch.no_grad():
            clock.mark()
            loss(inputs)
            clock.mark()
    else:
        learning = _learning(case, inputs)
        clock.mark()
        loss(learning).backward()
        clock.mark()
    return clock.intervals()[0]


def _memory(loss: FamilyLoss, case: FamilyCase, inputs: FamilyInputs) -> int:
    """Bytes of the peak of one call with gradients beyond its inputs."""
    learning = _learning(case, inputs)
    if inputs.anchors.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(learning).backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    growth = PeakGrowth()
    loss(learning).backward()
    return growth.bytes()


@dataclass(frozen=True)
class FamilyOptions:
    """How much is measured."""

    device: torch.device
    seed: int
    repeats: int
    deadline: float  # on the clock of time.monotonic
    memory_limit: int  # bytes beyond the present use, 0: none
    cases: tuple[str, ...]  # names; empty: all
    compiled: bool = True


def measure_family(results: Results, options: FamilyOptions, kept: Kept | None = None) -> None:
    """Fill ``results`` with a row for each case, implementation, type and phase."""
    cases = [case for case in CASES if not options.cases or case.name in options.cases]
    for case in cases:
        results.cases[case.name] = {
            "name": case.name, "A": case.A, "N": case.N, "C": case.C, "K": case.K,
        }  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):
            inputs = make_inputs(case, options.seed, options.device, dtype)
            contenders = {"ours": case.ours, "eager": case.eager}
            if options.compiled:
                contenders["compiled"] = torch.compile(case.eager, dynamic=False)
            for name, loss in contenders.items():
                _measure(results, options, case, name, loss, inputs)
        if kept is not None:
            kept.save_so_far()


def _measure(
    results: Results,
    options: FamilyOptions,
    case: FamilyCase,
    name: str,
    loss: FamilyLoss,
    inputs: FamilyInputs,
) -> None:
    dtype = str(inputs.anchors.dtype).removeprefix("torch.")
    for phase in ("forward", "both"):
        row = Row(case.name, name, dtype, phase)
        results.rows.append(row)
        if time.monotonic() > options.deadline:
            row.status, row.detail = "skipped", "the time budget is used up"
            continue
        try:
            with limited_memory(options.memory_limit):
                _time(loss, case, inputs, phase)  # warms up, and compiles
                while len(row.samples) < options.repeats:
                    row.samples.append(_time(loss, case, inputs, phase))
                    if time.monotonic() > options.deadline:
                        break
                if phase == "both":
                    row.extra_memory = _memory(loss, case, inputs)
        except Exception as error:  # a rival that dies is a row of the table
            row.status = "out_of_memory" if is_out_of_memory(error) else "failed"
            row.detail = first_line(error)


def family_table(results: Results) -> str:
    """One line for each case, implementation and type; below, the reasons of failures."""
    header = ["case", "implementation", "type", "forward", "eager/", "both", "eager/", "memory"]
    lines, notes = [], []
    for row in results.rows:
        if row.phase != "both":
            continue
        cells = [row.case, row.implementation, row.dtype]
        for phase in ("forward", "both"):
            here = results.find(row.case, row.implementation, row.dtype, phase)
            rival = results.find(row.case, "eager", row.dtype, phase)
            known = here is not None and bool(here.samples)
            ratio = None
            if here is not None and known and rival is not None and rival.samples:
                ratio = rival.median / here.median
            cells += [units.seconds(here.median) if here is not None and known else "-"]
            cells += [units.ratio(ratio)]
        lines.append([*cells, units.size(row.extra_memory)])
        if row.status != "ok":
            notes.append(
                f"{row.case}, {row.implementation} {row.dtype}: {row.status}, {row.detail}"
            )
    meaning = (
        "forward: without gradient; both: loss and gradients to all that learns; eager/: times "
        "faster than eager;\nmemory: peak of both beyond the inputs"
    )
    parts = [describe_run(results), meaning, aligned_table(header, lines, left=3)]
    return "\n".join([*parts, *notes])
