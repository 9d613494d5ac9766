"""Plain ATen gives the same if a device has no kernel (float64, many channels on CUDA)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from loss_cases import SHAPES, LossCase, make_case
from torch import Tensor

import cac_ext
from cac_ext import _C, reference


@pytest.fixture(autouse=True)
def _aten_backend() -> Iterator[None]:
    _C.replace_cpu_backend_by_aten(True)
    yield
    _C.replace_cpu_backend_by_aten(False)


def outcome(function, case: LossCase, **options) -> tuple[Tensor, Tensor, Tensor]:
    features = [x.clone().requires_grad_() for x in (case.features1, case.features2)]
    loss = function(
        *features, *case.arguments()[2:], reduction="none", confidence_threshold=0.3, **options
    )
    loss.sum().backward()
    return loss.detach(), features[0].grad, features[1].grad


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("temperature", [0.3, 0.01])
@pytest.mark.parametrize("shape", [*SHAPES, (20, 60, 700, 3)], ids=str)
def test_equals_the_oracle(seed, shape, temperature, eps):
    case = make_case(seed, *shape, torch.float64)
    options = {"temperature": temperature, "eps": eps}
    ours = outcome(cac_ext.directional_contrastive_loss, case, **options)
    exact = outcome(reference.directional_contrastive_loss, case, **options)
    for x, y in zip(ours, exact, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_types(seed, dtype):
    case = make_case(seed, 70, 150, 300, 5, dtype)
    ours = outcome(cac_ext.directional_contrastive_loss, case)
    exact = outcome(reference.directional_contrastive_loss, case.to_float64())
    for x, y in zip(ours, exact, strict=True):
        error = (x.double() - y).norm() / y.norm()
        assert error <= (24 if dtype == torch.float32 else 0.7) * torch.finfo(dtype).eps


def test_logsumexp_without_negatives_of_another_class(seed):
    case = make_case(seed, 9, 12, 8, 1, torch.float64)
    anchors = case.features1.requires_grad_()
    value = cac_ext.masked_logsumexp(
        anchors, case.negatives, case.pseudo_labels1, case.negative_labels
    )
    assert value.isneginf().all()
    value.backward(torch.ones_like(value))
    assert (anchors.grad == 0).all()
