"""The operators work with autograd, torch.compile, autocast and threads."""

from __future__ import annotations

import pytest
import torch
from loss_cases import LossCase, make_case

import cac_ext
from cac_ext import ops

OPERATORS = torch.ops.cac_ext


def operator_arguments(name: str, case: LossCase) -> tuple:
    prepared = OPERATORS.prepare_negatives(case.negatives, case.negative_labels, True)
    negatives, labels, leading_rows, num_valid = prepared
    anchors = case.features1.clone().requires_grad_()
    others = case.features2.clone()
    if name == "prepare_negatives":
        return case.negatives, case.negative_labels, True
    if name == "masked_logsumexp":
        return anchors, negatives, case.pseudo_labels1, labels, num_valid, 0.1, True, None, True
    if name == "masked_contrastive_loss":
        return (
            anchors, others, negatives, case.pseudo_labels1, labels, leading_rows, num_valid,
            case.confidences1 < 0.7, 0.1, True, 0.0, None, True,
        )  # fmt: skip
    return (
        anchors, others.requires_grad_(), case.confidences1, case.confidences2,
        case.pseudo_labels1, case.pseudo_labels2, *prepared, 0.1, 0.3, True, 1e-8, None, True,
    )  # fmt: skip


NAMES = [
    "prepare_negatives",
    "masked_logsumexp",
    "masked_contrastive_loss",
    "directional_contrastive_loss",
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(seed, device, name, dtype):
    case = make_case(seed, 19, 33, 6, 3, dtype, device)
    torch.library.opcheck(getattr(OPERATORS, name).default, operator_arguments(name, case))


@pytest.mark.parametrize(("temperature", "eps"), [(0.5, 0.0), (0.02, 0.0), (0.5, 1e-8)])
def test_gradcheck_of_the_loss(seed, device, temperature, eps):
    # The derivative holds the positives still, so each view's role as positive is detached.
    case = make_case(seed, 9, 21, 5, 3, torch.float64, device)

    def loss(features1, features2):
        return cac_ext.masked_contrastive_loss(
            features1, case.features2, case.negatives, case.pseudo_labels1, case.negative_labels,
            temperature=temperature, eps=eps,
        ), cac_ext.masked_contrastive_loss(
            features2, case.features1, case.negatives, case.pseudo_labels2, case.negative_labels,
            active=case.confidences1 > 0.5, temperature=temperature, eps=eps,
        )  # fmt: skip

    views = (case.features1.clone().requires_grad_(), case.features2.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, views, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_gradcheck_of_the_logsumexp(seed, device):
    case = make_case(seed, 9, 21, 5, 3, torch.float64, device)

    def logsumexp(anchors):
        return cac_ext.masked_logsumexp(
            anchors, case.negatives, case.pseudo_labels1, case.negative_labels
        )

    assert torch.autograd.gradcheck(logsumexp, case.features1.requires_grad_(), eps=1e-7)


def test_gradcheck_of_both_directions(seed, device):
    # Finite differences would move the positives as well; frozen copies stay in place.
    case = make_case(seed, 9, 21, 5, 3, torch.float64, device)
    first_to_second, second_to_first = cac_ext.reference.direction_masks(
        case.confidences1, case.confidences2, 0.2
    )
    for view, active in ((0, first_to_second), (1, second_to_first)):
        frozen = [x.clone() for x in case.arguments()]

        def loss(features, view=view, active=active, frozen=frozen):
            arguments = list(frozen)
            arguments[view] = features
            both = cac_ext.directional_contrastive_loss(
                *arguments, confidence_threshold=0.2, reduction="none"
            )
            return both[view] * active

        assert torch.autograd.gradcheck(loss, frozen[view].clone().requires_grad_(), eps=1e-7)


@pytest.mark.parametrize("prepared", [False, True])
def test_compiles_as_one_graph(seed, device, prepared):
    case = make_case(seed, 40, 90, 8, 3, device=device)

    def loss_of(features1, features2, *rest):
        return cac_ext.directional_contrastive_loss(
            features1 * 2, features2, *rest, confidence_threshold=0.2
        )

    arguments = list(case.arguments())
    if prepared:
        arguments[6:] = [cac_ext.prepare_negatives(case.negatives, case.negative_labels)]

    def run(function):
        views = [x.clone().requires_grad_() for x in arguments[:2]]
        loss = function(*views, *arguments[2:])
        loss.backward()
        return loss.detach(), *(x.grad for x in views)

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    for x, y in zip(run(compiled), run(loss_of), strict=True):
        torch.testing.assert_close(x, y)


def test_autograd_functions_equal_the_operators(seed, device):
    case = make_case(seed, 40, 90, 8, 3, device=device)
    for name, function in (
        ("masked_logsumexp", ops.MaskedLogSumExp),
        ("masked_contrastive_loss", ops.MaskedContrastiveLoss),
        ("directional_contrastive_loss", ops.DirectionalContrastiveLoss),
    ):
        results = []
        for call in (getattr(OPERATORS, name), function.apply):
            arguments = operator_arguments(name, case)
            value = call(*arguments)[0]
            value.nan_to_num(neginf=0).sum().backward()
            results.append((value.detach(), arguments[0].grad))
        for x, y in zip(*results, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_its_type(seed, device, dtype):
    case = make_case(seed, 40, 90, 8, 3, device=device)
    features = [case.features1.clone().requires_grad_(), case.features2.clone().requires_grad_()]
    with torch.autocast(device, dtype):
        loss = cac_ext.directional_contrastive_loss(*features, *case.arguments()[2:])
    loss.backward()
    lower = [x.detach().to(dtype) for x in features]
    expected = cac_ext.directional_contrastive_loss(
        *lower, *case.arguments()[2:6], case.negatives.to(dtype), case.negative_labels
    )
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert features[0].grad.dtype == torch.float32


def test_medium_matmul_precision_multiplies_float32_as_bfloat16(seed):
    case = make_case(seed, 40, 90, 8, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    finally:
        torch.set_float32_matmul_precision(before)
    has_bf16 = any("bf16" in name or name == "amx" for name in cac_ext._C.cpu_capabilities())
    assert prepared.dtype == (torch.bfloat16 if has_bf16 else torch.float32)
    assert cac_ext.prepare_negatives(case.negatives, case.negative_labels).dtype == torch.float32


def test_prepared_negatives_give_the_same_loss(seed, device):
    case = make_case(seed, 40, 9000, 8, 3, device=device)
    prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    for eps in (0.0, 1e-8):
        assert torch.equal(
            cac_ext.directional_contrastive_loss(*case.arguments()[:6], prepared, eps=eps),
            cac_ext.directional_contrastive_loss(*case.arguments(), eps=eps),
        )


def test_module_equals_function(seed, device):
    case = make_case(seed, 40, 90, 8, 3, device=device)
    module = cac_ext.DirectionalContrastiveLoss(
        temperature=0.2, confidence_threshold=0.5, reduction="mean", eps=1e-8
    )
    expected = cac_ext.directional_contrastive_loss(
        *case.arguments(), temperature=0.2, confidence_threshold=0.5, reduction="mean", eps=1e-8
    )
    assert torch.equal(module(*case.arguments()), expected)
    assert "temperature=0.2" in repr(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitwise_equal_from_run_to_run_and_for_any_number_of_threads(seed, dtype):
    case = make_case(seed, 900, 3000, 64, 9, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            features = case.features1.clone().requires_grad_()
            loss = cac_ext.directional_contrastive_loss(
                features, *case.arguments()[1:], confidence_threshold=0.2
            )
            loss.backward()
            results.append((loss.detach(), features.grad))
    finally:
        torch.set_num_threads(threads)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_no_second_derivative_but_a_clear_error(seed, device):
    case = make_case(seed, 9, 21, 5, 3, torch.float64, device)
    features = case.features1.requires_grad_()
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), confidence_threshold=0.0)
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


def test_without_grad_nothing_is_kept(seed, device):
    case = make_case(seed, 9, 21, 5, 3, device=device)
    case.features1.requires_grad_()
    with torch.no_grad():
        loss = cac_ext.directional_contrastive_loss(*case.arguments())
    assert not loss.requires_grad
