"""Inputs for the whole family of losses, drawn from a seed, and the judge of their outcomes.

Values and all gradients (anchors, positives, keys, temperature) are compared with the float64
oracle. The unit of error is that of a logit, ``E = u t / sqrt(C) + v (1 + t)``: u is half a unit in
the last place of what is multiplied, v that of the sums and exponentials, t the largest logit (see
loss_checks.py). A gradient may be off by E times its largest possible norm, that of all pairs
pulling the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from loss_arithmetics import FLOAT32, FLOAT64, multiplication_of
from torch import Tensor

import cac_ext
from cac_ext import reference

Loss = Callable[..., Tensor]

#: Three times what the CPU kernels needed on any instruction set (0.67, for bfloat16).
FACTOR = 2.0

MASKS = ["different", "same", "all"]
FORMS = ["supcon", "pairwise"]

#: (anchors, keys, channels, classes): odd sizes, tile borders, one of each, one class, empty.
SHAPES = [
    (1, 1, 1, 2),
    (1, 300, 8, 3),
    (97, 1, 5, 2),
    (48, 96, 32, 2),
    (130, 517, 37, 7),
    (300, 700, 64, 40),
    (50, 200, 16, 1),
    (40, 0, 16, 3),
    (0, 40, 16, 3),
]


@dataclass
class FamilyCase:
    """Anchors, their positives and keys; clustered by class."""

    anchors: Tensor  # [A, C]
    positives: Tensor  # [A, C]
    keys: Tensor  # [N, C]
    anchor_labels: Tensor  # [A]
    key_labels: Tensor  # [N]
    active: Tensor  # [A] bool
    exclude: Tensor  # [A], -1 for some
    num_valid: int
    upstream: Tensor  # [A] weights of a sum of losses, of both signs


def make_case(
    seed: int,
    anchors: int,
    keys: int,
    channels: int,
    classes: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> FamilyCase:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def labels(count: int) -> Tensor:
        return torch.randint(0, classes, (count,), generator=generator)

    centers = normal(classes, channels)
    anchor_labels, key_labels = labels(anchors), labels(keys)
    common = centers[anchor_labels] + normal(anchors, channels)
    exclude = torch.randint(-1, max(keys, 1), (anchors,), generator=generator)
    return FamilyCase(
        anchors=(common + 0.5 * normal(anchors, channels)).to(dtype).to(device),
        positives=(common + 0.5 * normal(anchors, channels)).to(dtype).to(device),
        keys=(centers[key_labels] + normal(keys, channels)).to(dtype).to(device),
        anchor_labels=anchor_labels.to(device),
        key_labels=key_labels.to(device),
        active=(torch.rand(anchors, generator=generator) < 0.7).to(device),
        exclude=torch.where(exclude < keys, exclude, -1).to(device),
        num_valid=keys - keys // 4,
        upstream=normal(anchors).to(device),
    )


def outcome(loss: Loss, case: FamilyCase, tau: float, **options: Any) -> dict[str, Tensor]:
    """Values and gradients of everything, in the case's types.

    ``loss(anchors, positives, keys, temperature=, ...)``; ``positives`` may have no gradient.
    """
    leaves = {
        "anchors": case.anchors.clone().requires_grad_(),
        "positives": case.positives.clone().requires_grad_(),
        "keys": case.keys.clone().requires_grad_(),
        "temperature": torch.tensor(tau, dtype=torch.float64, requires_grad=True),
    }
    values = loss(
        leaves["anchors"], leaves["positives"], leaves["keys"], leaves["temperature"], **options
    )
    finite = torch.where(values.isfinite(), values, 0.0)
    total = (finite * case.upstream.to(values.dtype)).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    result = {"values": values.detach()}
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        result[name] = torch.zeros_like(leaf) if grad is None else grad
    return result


def exact_case(case: FamilyCase) -> FamilyCase:
    """The same numbers in float64."""
    double = {k: x.double() for k, x in vars(case).items() if k in ("anchors", "positives", "keys")}
    return FamilyCase(**{**vars(case), **double})


def assert_equals_oracle(
    ours: Loss,
    oracle: Loss,
    case: FamilyCase,
    tau: float,
    *,
    normalize: bool = True,
    **options: Any,
) -> None:
    """Both called as `outcome` says, with ``normalize`` and the other options."""
    options["normalize"] = normalize
    double = exact_case(case)
    exact = outcome(oracle, double, tau, **options)
    found = outcome(ours, case, tau, **options)
    multiplication = multiplication_of(case.anchors)
    sum_unit = FLOAT64.unit if multiplication is FLOAT64 else FLOAT32.unit
    channels = case.anchors.shape[1] if multiplication.rounds_factors else 1
    lengths = {name: getattr(double, name).norm(dim=1) for name in ("anchors", "positives", "keys")}
    longest = {
        name: 1.0 if normalize else max(x.tolist(), default=0) for name, x in lengths.items()
    }
    reach = max(longest["positives"], longest["keys"])
    logit = longest["anchors"] * reach / tau
    error = multiplication.unit * logit / channels**0.5 + sum_unit * (1 + logit)
    error = FACTOR * (error + multiplication.exponential)

    def slope(name: str, others: float) -> Tensor:  # of a logit with respect to the row, [R]
        return others / tau / (lengths[name] if normalize else torch.ones_like(lengths[name]))

    upstream = double.upstream.abs()
    finite = exact["values"][exact["values"].isfinite()]
    sizes = {
        "values": torch.ones_like(upstream).norm() + 2 * sum_unit / error * finite.norm(),
        "anchors": (2 * upstream * slope("anchors", reach)).norm(),
        "positives": (upstream * slope("positives", longest["anchors"])).norm(),
        "keys": (upstream.sum() * slope("keys", longest["anchors"])).norm(),
        "temperature": 2 * upstream.sum() * logit / tau,
    }
    assert torch.equal(found["values"].isneginf(), exact["values"].isneginf())
    for name, truth in exact.items():
        kept = truth.isfinite()
        off = (found[name].double() - truth.double())[kept].norm().item()
        # Parts of a gradient are rounded each, and may cancel.
        rounding = torch.finfo(found[name].dtype).eps * (
            truth[kept].norm().item() + (sizes[name].item() / 4 if name != "values" else 0.0)
        )
        bound = error * sizes[name].item() + rounding
        assert off <= bound, f"{name}: error {off:.2e} > {bound:.2e}"


def options_of(case: FamilyCase) -> list[dict[str, Any]]:
    """Options that every function takes."""
    return [
        {},
        {"exclude": case.exclude},
        {"exclude": case.exclude, "num_valid": torch.tensor(case.num_valid)},
        {"ignore_index": 0, "exclude": case.exclude},
        {"normalize": False},
    ]


def contrastive(module: ModuleType, case: FamilyCase, mask: str) -> Loss:
    def loss(anchors, positives, keys, temperature, **options):
        return module.masked_contrastive_loss(
            anchors, positives, keys, case.anchor_labels, case.key_labels,
            temperature=temperature, mask=mask, active=case.active, **options,
        )  # fmt: skip

    return loss


def logsumexp(module: ModuleType, case: FamilyCase, mask: str) -> Loss:
    def loss(anchors, _, keys, temperature, **options):
        return module.masked_logsumexp(
            anchors, keys, case.anchor_labels, case.key_labels,
            temperature=temperature, mask=mask, **options,
        )  # fmt: skip

    return loss


def supervised(module: ModuleType, case: FamilyCase, form: str) -> Loss:
    def loss(anchors, _, keys, temperature, **options):
        return module.supervised_contrastive_loss(
            anchors, keys, case.anchor_labels, case.key_labels,
            temperature=temperature, form=form, active=case.active, **options,
        )  # fmt: skip

    return loss


EVERY = [*((contrastive, x) for x in MASKS), *((logsumexp, x) for x in MASKS)]
EVERY += [(supervised, x) for x in FORMS]


def check(make_loss, kind: str, case: FamilyCase, tau: float, **options: Any) -> None:
    """One of `EVERY` equals the oracle."""
    if options.get("normalize") is False:
        tau = tau * case.anchors.shape[1]
    ours, oracle = make_loss(cac_ext, case, kind), make_loss(reference, case, kind)
    assert_equals_oracle(ours, oracle, case, tau, **options)
