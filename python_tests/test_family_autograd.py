"""The family of losses works with autograd, torch.compile, autocast and threads."""

from __future__ import annotations

import pytest
import torch
from family_cases import make_case
from torch.utils._python_dispatch import TorchDispatchMode

import cac_ext

OPERATORS = torch.ops.cac_ext
FORMS = ["supcon", "pairwise"]
MASKS = ["different", "same", "all"]


def leaves_of(case):
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    return *(x.clone().requires_grad_() for x in (case.anchors, case.positives, case.keys)), (
        temperature
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck_of_every_mask(seed, mask, normalize):
    case = make_case(seed, 7, 15, 5, 3, torch.float64)

    def loss(anchors, positives, keys, temperature):
        options = {"temperature": temperature, "mask": mask, "exclude": case.exclude}
        labels = case.anchor_labels, case.key_labels
        return cac_ext.masked_contrastive_loss(
            anchors, positives, keys, *labels, active=case.active, normalize=normalize, **options
        ), cac_ext.masked_logsumexp(
            anchors, keys, *labels, normalize=normalize, **options
        ).nan_to_num(neginf=0.0)  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves_of(case), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_anchors_that_are_the_keys(seed, form):
    case = make_case(seed, 9, 1, 5, 3, torch.float64)

    def loss(rows, temperature):
        return cac_ext.supervised_contrastive_loss(
            rows, rows, case.anchor_labels, case.anchor_labels, form=form,
            temperature=temperature, exclude=torch.arange(9),
        )  # fmt: skip

    anchors, _, _, temperature = leaves_of(case)
    assert torch.autograd.gradcheck(loss, (anchors, temperature), eps=1e-7, atol=1e-5, rtol=1e-4)


def operator_arguments(name, case):
    anchors, positives, keys, temperature = leaves_of(case)
    features, labels, leading_rows, num_valid, rank = OPERATORS.prepare_keys(
        case.keys, case.key_labels, None, True
    )
    rows = torch.ones(len(anchors), dtype=torch.promote_types(anchors.dtype, torch.float32))
    if name == "prepare_keys":
        return case.keys, case.key_labels, torch.tensor(case.num_valid), True, 0
    if name == "contrast":
        return (
            anchors, positives, keys, temperature, case.anchor_labels, case.active, case.exclude,
            features, labels, rank, leading_rows, num_valid, "different", True, 0.0, None, True,
        )  # fmt: skip
    if name == "pairwise_contrast":
        return (
            anchors, keys, temperature, case.anchor_labels, case.active, case.exclude, features,
            labels, rank, num_valid, True, None, True,
        )  # fmt: skip
    if name == "contrast_gradient_of_keys":
        return (
            case.keys, case.anchors, temperature.detach(), case.anchor_labels, case.exclude,
            labels, rank, num_valid, 3 * rows, rows, "same", True, True,
        )  # fmt: skip
    if name == "contrast_gradient_of_positives":
        return case.anchors, case.positives, temperature.detach(), rows, True
    if name == "class_rows":
        return case.keys.clone().requires_grad_(), rank
    return keys, case.key_labels, 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "prepare_keys", "contrast", "pairwise_contrast", "contrast_gradient_of_keys",
        "contrast_gradient_of_positives", "class_sums", "class_rows",
    ],
)  # fmt: skip
def test_opcheck(seed, name, dtype):
    case = make_case(seed, 19, 33, 6, 3, dtype)
    torch.library.opcheck(getattr(OPERATORS, name).default, operator_arguments(name, case))


def everything(anchors, positives, keys, temperature, case):
    """One number from all public functions."""
    labels = case.anchor_labels, case.key_labels
    options = {"temperature": temperature, "exclude": case.exclude}
    total = cac_ext.masked_contrastive_loss(anchors * 2, positives, keys, *labels, **options).sum()
    total = total + cac_ext.masked_logsumexp(anchors, keys, mask="all", **options).sum()
    for form in FORMS:
        loss = cac_ext.supervised_contrastive_loss(anchors, keys, *labels, form=form, **options)
        total = total + loss.sum()
    return total


def test_compiles_as_one_graph(seed):
    case = make_case(seed, 40, 90, 8, 3)
    results = []
    for function in (
        everything,
        torch.compile(everything, fullgraph=True, backend="aot_eager"),
    ):
        leaves = leaves_of(case)
        value = function(*leaves, case)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


def test_autocast_takes_its_type(seed):
    case = make_case(seed, 40, 90, 8, 3)
    leaves = leaves_of(case)
    with torch.autocast("cpu", torch.bfloat16):
        value = everything(*leaves, case)
    grads = torch.autograd.grad(value, leaves)
    lower = [x.detach().bfloat16().requires_grad_() for x in leaves[:3]]
    expected = everything(*lower, leaves[3], case)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    assert all(x.dtype == torch.float32 for x in grads[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitwise_equal_from_run_to_run_and_for_any_number_of_threads(seed, dtype):
    case = make_case(seed, 300, 900, 64, 9, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            leaves = leaves_of(case)
            value = everything(*leaves, case)
            results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for x, y in zip(result, results[0], strict=True):
            assert torch.equal(x, y)


class _Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def test_the_second_pass_runs_only_if_somebody_asks_for_it(seed):
    case = make_case(seed, 20, 40, 8, 3)
    for wants_keys in (False, True):
        keys = case.keys.clone().requires_grad_(wants_keys)
        anchors = case.anchors.clone().requires_grad_()
        with _Calls() as calls:
            cac_ext.masked_contrastive_loss(
                anchors, case.positives, keys, mask="all", exclude=case.exclude
            ).sum().backward()
        passes = calls.names.count("cac_ext::contrast_gradient_of_keys")
        assert passes == wants_keys
        assert "cac_ext::contrast_gradient_of_positives" not in calls.names


def test_the_paper_s_case_is_the_same_operator_as_ever(seed):
    case = make_case(seed, 20, 40, 8, 3)
    anchors = case.anchors.clone().requires_grad_()
    with _Calls() as calls:
        cac_ext.masked_contrastive_loss(
            anchors, case.positives, case.keys, case.anchor_labels, case.key_labels
        ).sum().backward()
    assert "cac_ext::masked_contrastive_loss" in calls.names
    assert "cac_ext::contrast" not in calls.names


def test_no_second_derivative_but_a_clear_error(seed):
    case = make_case(seed, 9, 21, 5, 3, torch.float64)
    for which in range(4):
        leaves = leaves_of(case)
        value = everything(*leaves, case)
        gradient = torch.autograd.grad(value, leaves[which], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.square().sum().backward()


def test_torch_func_gives_the_same_gradients(seed):
    case = make_case(seed, 9, 21, 5, 3, torch.float64)
    leaves = leaves_of(case)
    expected = torch.autograd.grad(everything(*leaves, case), leaves)
    plain = tuple(x.detach() for x in leaves)
    found = torch.func.grad(lambda *x: everything(*x, case), argnums=(0, 1, 2, 3))(*plain)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_forward_mode_reaches_the_anchors_alone(seed):
    case = make_case(seed, 9, 21, 5, 3, torch.float64)

    def of_anchors(anchors):
        return cac_ext.masked_logsumexp(anchors, case.keys, mask="all").sum()

    tangent = torch.ones_like(case.anchors)
    _, along = torch.func.jvp(of_anchors, (case.anchors,), (tangent,))
    torch.testing.assert_close(along, torch.func.grad(of_anchors)(case.anchors).sum())
    with pytest.raises(RuntimeError, match="negatives have a tangent"):
        torch.func.jvp(
            lambda keys: cac_ext.masked_logsumexp(case.anchors, keys, mask="all").sum(),
            (case.keys,), (torch.ones_like(case.keys),),
        )  # fmt: skip
