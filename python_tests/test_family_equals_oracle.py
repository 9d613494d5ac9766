"""Every mask, form and option, with all gradients, on every instruction set and by plain ATen."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from family_cases import SHAPES, FamilyCase, Loss, assert_equals_oracle, make_case
from loss_arithmetics import ARITHMETICS, use_arithmetic

import cac_ext
from cac_ext import _C, reference

MASKS = ["different", "same", "all"]
FORMS = ["supcon", "pairwise"]


@pytest.fixture(params=ARITHMETICS, ids=str)
def arithmetic(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The type of the features, multiplied in one of the ways there are."""
    with use_arithmetic(request.param):
        yield request.param.dtype


def options_of(case: FamilyCase) -> list[dict]:
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


def check(make_loss, kind: str, case: FamilyCase, tau: float, **options) -> None:
    if options.get("normalize") is False:
        tau = tau * case.anchors.shape[1]
    ours, oracle = make_loss(cac_ext, case, kind), make_loss(reference, case, kind)
    assert_equals_oracle(ours, oracle, case, tau, **options)


@pytest.mark.parametrize(("make_loss", "kind"), EVERY)
def test_every_option_in_every_arithmetic(seed, arithmetic, make_loss, kind):
    case = make_case(seed, 70, 161, 37, 5, arithmetic)
    for options in options_of(case):
        check(make_loss, kind, case, 0.1, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("make_loss", "kind"), EVERY)
def test_every_shape_and_temperature(seed, make_loss, kind, shape):
    case = make_case(seed, *shape)
    for tau in (1.0, 0.02):
        check(make_loss, kind, case, tau, exclude=case.exclude)


@pytest.mark.parametrize(("make_loss", "kind"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_plain_aten_gives_the_same(seed, dtype, make_loss, kind):
    case = make_case(seed, 70, 161, 37, 5, dtype)
    _C.replace_cpu_backend_by_aten(True)
    try:
        for options in options_of(case):
            check(make_loss, kind, case, 0.1, **options)
    finally:
        _C.replace_cpu_backend_by_aten(False)


@pytest.mark.parametrize("channels", [300, 720, 1024])
def test_many_channels(seed, channels):
    case = make_case(seed, 40, 97, channels, 4)
    for make_loss, kind in EVERY:
        check(make_loss, kind, case, 0.1)


def test_eps_with_gradients_of_everything(seed):
    case = make_case(seed, 60, 90, 16, 3, torch.float64)
    for eps in (1e-8, 1e-3):
        check(contrastive, "different", case, 0.2, eps=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_learned_temperature_of_the_directional_loss(seed, dtype):
    case = make_case(seed, 60, 90, 16, 3, dtype)
    confidences = torch.rand(2, 60, generator=torch.Generator().manual_seed(seed))

    def directional(module):
        def loss(anchors, positives, keys, temperature, **options):
            return module.directional_contrastive_loss(
                anchors, positives, *confidences, case.anchor_labels, case.anchor_labels,
                keys.detach(), case.key_labels, temperature=temperature,
                confidence_threshold=0.3, reduction="none", **options,
            ).sum(0)  # fmt: skip

        return loss

    assert_equals_oracle(directional(cac_ext), directional(reference), case, 0.1)


def test_small_margins_are_not_cut_off(seed):
    # Far apart classes: every loss is about N exp(-2 / tau), far below the unit of 1.
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(40) % 2
    centers = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])[labels]
    rows = centers + 0.05 * torch.randn(40, 3, generator=generator)
    for arithmetic in ARITHMETICS:
        if arithmetic.dtype != torch.float32 or arithmetic.precision != "highest":
            continue
        with use_arithmetic(arithmetic):
            ours = cac_ext.supervised_contrastive_loss(
                rows, rows, labels, labels, form="pairwise", exclude=torch.arange(40)
            )
        double = rows.double()
        exact = reference.supervised_contrastive_loss(
            double, double, labels, labels, form="pairwise", exclude=torch.arange(40)
        )
        torch.testing.assert_close(ours.double(), exact, rtol=3e-5, atol=0)
