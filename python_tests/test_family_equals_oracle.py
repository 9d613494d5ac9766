"""Every mask, form and option, with all gradients, on every instruction set and by plain ATen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from family_cases import (
    EVERY,
    SHAPES,
    assert_equals_oracle,
    check,
    contrastive,
    make_case,
    options_of,
)
from loss_arithmetics import ARITHMETICS, use_arithmetic

import cac_ext
from cac_ext import _C, reference


@pytest.fixture(params=ARITHMETICS, ids=str)
def arithmetic(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The type of the features, multiplied in one of the ways there are."""
    with use_arithmetic(request.param):
        yield request.param.dtype


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


def test_a_module_learns_its_temperature(seed):
    case = make_case(seed, 60, 90, 16, 3)
    confidences = torch.rand(2, 60, generator=torch.Generator().manual_seed(seed))
    module = cac_ext.DirectionalContrastiveLoss(torch.nn.Parameter(torch.tensor(0.2)))
    arguments = (
        case.anchors, case.positives, *confidences, case.anchor_labels, case.anchor_labels,
        case.keys, case.key_labels,
    )  # fmt: skip
    module(*arguments).backward()
    learned = torch.tensor(0.2, requires_grad=True)
    cac_ext.directional_contrastive_loss(*arguments, temperature=learned).backward()
    (parameter,) = module.parameters()
    assert torch.equal(parameter.grad, learned.grad)
    assert parameter.grad != 0
    assert "temperature=0.2" in repr(module)
