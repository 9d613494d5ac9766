"""The checks that the loss passes reject wrong losses, for every type of features."""

from __future__ import annotations

from collections.abc import Iterator

import loss_mutants
import pytest
import torch
from loss_arithmetics import ARITHMETICS, use_arithmetic
from loss_cases import SHAPES, make_case
from loss_checks import (
    REDUCTIONS,
    Loss,
    assert_close_to_oracle,
    assert_reductions_equal_oracle,
)

import cac_ext
from cac_ext import _C

CAPABILITIES = (_C.cpu_capabilities()[0], _C.cpu_capabilities()[-1])
#: Fixed inputs: whether a mutant is rejected must not depend on luck.
CASES = [
    (shape, temperature)
    for shape in SHAPES
    if shape[0] > 1 and shape[1] > 1 and shape[3] > 1
    for temperature in (0.1, 0.02)
]


@pytest.fixture(params=[x for x in ARITHMETICS if x.capability in CAPABILITIES], ids=str)
def arithmetic(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The type of the features, multiplied in the plainest and in the fastest way."""
    with use_arithmetic(request.param):
        yield request.param.dtype


def check_anchors(loss: Loss, dtype: torch.dtype) -> None:
    for number, (shape, temperature) in enumerate(CASES):
        case = make_case(number, *shape, dtype)
        assert_close_to_oracle(case, loss, temperature=temperature, confidence_threshold=0.25)


def check_eps(loss: Loss, dtype: torch.dtype) -> None:
    for number, (shape, temperature) in enumerate(CASES):
        case = make_case(number, *shape, dtype)
        assert_close_to_oracle(
            case, loss, temperature=temperature, eps=1e-8, confidence_threshold=0.25
        )


def check_reductions(loss: Loss, dtype: torch.dtype) -> None:
    for reduction in REDUCTIONS:
        for weighted in (False, True):
            case = make_case(0, 90, 300, 16, 5, dtype)
            assert_reductions_equal_oracle(case, loss, reduction=reduction, weighted=weighted)


def test_the_loss_passes(arithmetic):
    check_anchors(cac_ext.directional_contrastive_loss, arithmetic)
    check_eps(cac_ext.directional_contrastive_loss, arithmetic)
    check_reductions(cac_ext.directional_contrastive_loss, arithmetic)


@pytest.mark.parametrize("name", loss_mutants.OF_ANCHORS)
def test_a_wrong_loss_of_anchors_is_rejected(arithmetic, name):
    with pytest.raises(AssertionError):
        check_anchors(loss_mutants.OF_ANCHORS[name], arithmetic)


@pytest.mark.parametrize("name", loss_mutants.OF_REDUCTIONS)
def test_a_wrong_reduction_is_rejected(arithmetic, name):
    with pytest.raises(AssertionError):
        check_reductions(loss_mutants.OF_REDUCTIONS[name], arithmetic)


@pytest.mark.parametrize("name", loss_mutants.OF_EPS)
def test_a_wrong_eps_is_rejected(arithmetic, name):
    with pytest.raises(AssertionError):
        check_eps(loss_mutants.OF_EPS[name], arithmetic)


def test_a_loss_that_ignores_no_label_is_rejected(arithmetic):
    case = make_case(0, 48, 96, 32, 3, arithmetic)
    for label in (0, 1):
        with pytest.raises(AssertionError):
            assert_close_to_oracle(
                case,
                loss_mutants.no_label_ignored,
                ignore_index=label,
                confidence_threshold=0.25,
            )
