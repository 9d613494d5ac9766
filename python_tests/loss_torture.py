"""Random calls of the loss against the float64 oracle, far beyond those of a training.

    python -m python_tests.loss_torture --cases 2000 --seed 1

Every call is held to bounds that follow from its conditioning, for any values. With u half a unit
in the last place of what is multiplied and v of the sums, a logit of size t at most is off by

    E = 2 u t + (C + N + 32) v (t + 1)

(both factors rounded once; C products and N exponentials summed in any order) beside the error of
an exponential. How that moves
losses and gradients is said in `loss_checks`; weights of the gradient's sums are rounded as well,
so that there it is 2 E + 4 u. A call may be refused only if rows that are
not normalized are so long that a logit could reach 5e29.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

if __package__:  # run as a module: the tests' helpers import each other as files of one folder
    sys.path.insert(0, str(Path(__file__).parent))

import torch
from loss_arithmetics import ARITHMETICS, Arithmetic, multiplication_of, use_arithmetic
from loss_cases import LossCase
from loss_checks import REDUCTIONS, Comparison, compare, compare_reduced
from torch import Tensor

import cac_ext

#: Logits from here on may leave float32's range while they are summed.
LARGEST_LOGIT = 4e29


@dataclass(frozen=True, eq=False)  # hashed by identity
class Call:
    """The random choices of one call; `inputs` makes the tensors, always from the same seed."""

    seed: int
    arithmetic: Arithmetic
    anchors: int
    negatives: int
    channels: int
    classes: int
    class_step: int  # labels are multiples of it, moved by class_offset
    class_offset: int
    label_dtype: torch.dtype
    length_exponents: tuple[float, float, float]  # of features1, features2, negatives: 10^x
    length_spread: float  # rows of one operand differ by up to 10^x
    zero_rows: bool
    strided: bool
    prepared: bool
    reduction: str
    weighted: bool
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{x.name}={getattr(self, x.name)}" for x in fields(self))


def draw(seed: int) -> Call:
    rng = random.Random(seed)
    arithmetic = rng.choice(ARITHMETICS)
    normalize = rng.random() < 0.75
    # 10^x, within the type; products of lengths matter where they stay.
    low, high = {torch.float16: (-6, 4)}.get(arithmetic.dtype, (-40, 30))
    if rng.random() < 0.4:
        low, high = -1, 1
    elif not normalize and rng.random() < 0.7:
        low, high = -3, 2
    classes = rng.choice([1, 2, 3, 5, 21, 150])
    huge = rng.random() < 0.15
    label_dtype = torch.int64 if huge else rng.choice([torch.int64, torch.int32, torch.int16])
    class_step, class_offset = (2**54, -(2**60)) if huge else (1, rng.choice([0, 0, -1, -7]))
    if class_offset == 0 and rng.random() < 0.2:
        label_dtype = torch.uint8
    options: dict[str, object] = {
        "temperature": 10 ** rng.uniform(-3, 1) if rng.random() < 0.6 else 0.1,
        "normalize": normalize,
        "eps": rng.choice([0.0, 0.0, 1e-8]),
        "confidence_threshold": rng.choice([0.0, 0.25, 0.75, 0.96875, 1.0]),
    }
    if rng.random() < 0.3:
        options["ignore_index"] = rng.choice([class_offset, class_offset + class_step, 255, -1])
    sizes = [0, 1, 2, 3, 7, 16, 17, 33, 64, 65, 100]
    return Call(
        seed=seed,
        arithmetic=arithmetic,
        anchors=rng.choice(sizes),
        negatives=rng.choice([*sizes, 129, 257, 300]),
        channels=rng.choice([1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 100, 257]),
        classes=classes,
        class_step=class_step,
        class_offset=class_offset,
        label_dtype=label_dtype,
        length_exponents=tuple(rng.uniform(low, high) for _ in range(3)),
        length_spread=rng.choice([0.0, 0.0, 1.0, 3.0]),
        zero_rows=rng.random() < 0.2,
        strided=rng.random() < 0.3,
        prepared=rng.random() < 0.3,
        reduction=rng.choice(["none", "none", *REDUCTIONS]),
        weighted=rng.random() < 0.3,
        options=options,
    )


def inputs(call: Call) -> LossCase:
    generator = torch.Generator().manual_seed(call.seed)
    dtype = call.arithmetic.dtype
    largest = torch.finfo(dtype).max / 4

    def features(rows: int, exponent: float, common: Tensor | None = None) -> Tensor:
        shape = (rows, call.channels)
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if common is not None:
            values = values + common
        lengths = exponent + call.length_spread * torch.rand(rows, 1, generator=generator)
        values = values / values.norm(dim=1, keepdim=True) * 10.0 ** lengths.double()
        if call.zero_rows:
            values[torch.rand(rows, generator=generator) < 0.2] = 0
        return values.clamp(-largest, largest).to(dtype)

    def labels(rows: int) -> Tensor:
        drawn = torch.randint(0, call.classes, (rows,), generator=generator)
        return (drawn * call.class_step + call.class_offset).to(call.label_dtype)

    def confidences() -> Tensor:
        drawn = torch.randint(0, 65, (call.anchors,), generator=generator).double() / 64
        return drawn.to(dtype)

    def layout(x: Tensor) -> Tensor:
        if not call.strided:
            return x
        if x.dim() == 1:
            return torch.stack([x, x], dim=1)[:, 0]
        # Rows with a stride, or channels with one, as in a feature map [C, H W].
        wide = torch.cat([x, x], dim=1)[:, : x.shape[1]]
        return wide if call.seed % 2 else x.T.contiguous().T

    common = 2 * torch.randn(call.anchors, call.channels, generator=generator, dtype=torch.float64)
    labels1 = labels(call.anchors)
    case = (
        features(call.anchors, call.length_exponents[0], common),
        features(call.anchors, call.length_exponents[1], common),
        confidences(),
        confidences(),
        labels1,
        labels1 if call.seed % 3 else labels(call.anchors),
        features(call.negatives, call.length_exponents[2]),
        labels(call.negatives),
    )
    return LossCase(*map(layout, case))


def loss_of(call: Call):
    def loss(*arguments: Tensor, **options) -> Tensor:
        if not call.prepared:
            return cac_ext.directional_contrastive_loss(*arguments, **options)
        kept = {x: options[x] for x in ("normalize", "ignore_index") if x in options}
        negatives = cac_ext.prepare_negatives(*arguments[6:], **kept)
        return cac_ext.directional_contrastive_loss(*arguments[:6], negatives, **options)

    return loss


def with_proved_bounds(found: Comparison, case: LossCase) -> Comparison:
    multiplication = multiplication_of(case.features1)
    terms = case.features1.shape[1] + len(case.negatives) + 32
    logit = found.scales.logit
    error = 2 * multiplication.unit * logit + terms * found.sum_unit * (logit + 1)
    return replace(found, logit_error=error + multiplication.exponential)


@dataclass(frozen=True)
class Verdict:
    """The largest error in units of its bound; for a refusal its message."""

    losses: float = 0.0
    gradients: float = 0.0
    refusal: str = ""
    largest_logit: float = 0.0

    @property
    def passed(self) -> bool:
        if self.refusal:
            return self.largest_logit >= LARGEST_LOGIT and self.refusal.startswith("ValueError")
        return self.losses <= 1 and self.gradients <= 1

    def __str__(self) -> str:
        return self.refusal or f"losses {self.losses:.2g}, gradients {self.gradients:.2g} of 1"


def _largest_ratio(error: Tensor, allowed: Tensor) -> float:
    """0 / 0 counts as 0, any other nan as infinite."""
    ratio = torch.where((error == 0) & (allowed >= 0), 0.0, error / allowed)
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf).max().item() if ratio.numel() else 0.0


def judge(call: Call) -> Verdict:
    case = inputs(call)
    with use_arithmetic(call.arithmetic):
        unit = multiplication_of(case.features1).unit
        try:
            if call.reduction == "none":
                found = with_proved_bounds(compare(loss_of(call), case, **call.options), case)
                error, allowed = found.loss_error(), found.loss_bound(1.0)
            else:
                weights = torch.linspace(0.25, 2.0, call.anchors) if call.weighted else None
                found, error, reduced = compare_reduced(
                    loss_of(call), case, reduction=call.reduction, weights=weights, **call.options
                )
                found = with_proved_bounds(found, case)
                allowed = reduced(found.loss_bound(1.0))
        except (ValueError, TypeError, RuntimeError, IndexError) as refusal:
            return Verdict(
                refusal=f"{type(refusal).__name__}: {refusal}".splitlines()[0],
                largest_logit=largest_logit(case, call),
            )
    wider = replace(found, logit_error=2 * found.logit_error + 4 * unit)
    gradients = []
    for view in range(2):
        gradients.append(_largest_ratio(found.gradient_error(view), wider.gradient_bound(view, 1)))
        if not (found.ours.gradients[view][~found.active[view]] == 0).all():
            gradients.append(math.inf)
    return Verdict(_largest_ratio(error, allowed), max(gradients))


def largest_logit(case: LossCase, call: Call) -> float:
    """The bound that the lengths allow without normalization; 1 / tau with it."""
    temperature = call.options["temperature"]
    if call.options["normalize"]:
        return 1 / temperature
    lengths = [x.double().norm(dim=1) for x in (case.features1, case.features2, case.negatives)]
    largest = [x.max().item() if len(x) else 0.0 for x in lengths]
    return max(largest[:2]) * max(largest) / temperature


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first call; they count up")
    parser.add_argument("--failures", type=int, default=10, help="to print in full")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    worst: dict[str, tuple[float, Call]] = {}
    failed = refused = 0
    for seed in range(arguments.seed, arguments.seed + arguments.cases):
        call = draw(seed)
        verdict = judge(call)
        refused += bool(verdict.refusal) and verdict.passed
        if not verdict.passed:
            failed += 1
            if failed <= arguments.failures:
                print(f"FAILED {verdict}\n    {call}")
        for kind in ("losses", "gradients"):
            name = f"{str(call.arithmetic.dtype).removeprefix('torch.')} {kind}"
            error = getattr(verdict, kind)
            if error > worst.get(name, (-1.0, call))[0]:
                worst[name] = (error, call)
    print("largest errors, in units of what is allowed:")
    for name, (error, call) in sorted(worst.items()):
        print(f"  {name:20} {error:9.3g}  {call}")
    print(f"{arguments.cases} calls, {refused} refused as documented, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
