"""Value and gradient equal the paper's equations, computed eagerly in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from loss_arithmetics import ARITHMETICS, DTYPES, use_arithmetic
from loss_cases import SHAPES, LossCase, make_case
from loss_checks import (
    REDUCTIONS,
    assert_close_to_oracle,
    assert_logsumexp_close_to_oracle,
    assert_reductions_equal_oracle,
    compare,
    outcome,
    upstream,
)

import cac_ext
from cac_ext import reference


@pytest.fixture(params=ARITHMETICS, ids=str)
def arithmetic(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The type of the features, for each way in which this build multiplies them here."""
    with use_arithmetic(request.param):
        yield request.param.dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_type(seed, device, shape, dtype):
    case = make_case(seed, *shape, dtype, device)
    assert_close_to_oracle(case, confidence_threshold=0.25)


@pytest.mark.parametrize("temperature", [0.1, 0.02])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_instruction_set_and_precision(seed, arithmetic, shape, temperature):
    case = make_case(seed, *shape, arithmetic)
    assert_close_to_oracle(case, temperature=temperature, confidence_threshold=0.25)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_every_instruction_set_on_many_negatives(seed, arithmetic, eps):
    case = make_case(seed, 201, 1500, 128, 5, arithmetic)
    assert_close_to_oracle(case, eps=eps, confidence_threshold=0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [x for x in SHAPES if x[0] > 32 and x[1] > 32 and x[3] > 1])
def test_narrow_types_are_at_least_twice_as_near_as_eager(seed, device, shape, dtype):
    """Errors beside one unit in the last place, in norm: eager rounds logits and sums too."""
    case = make_case(seed, *shape, dtype, device)
    ours = compare(cac_ext.directional_contrastive_loss, case, confidence_threshold=0.25)
    eager = compare(reference.directional_contrastive_loss, case, confidence_threshold=0.25)
    eps = torch.finfo(dtype).eps
    allowed = 0.5 * eager.loss_error().norm() + eps * ours.exact.losses.norm()
    assert ours.loss_error().norm() <= allowed
    for view in range(2):
        allowed = 0.5 * eager.gradient_error(view).norm() + eps * ours.exact.gradients[view].norm()
        assert ours.gradient_error(view).norm() <= allowed


@pytest.mark.parametrize("temperature", [10.0, 0.5, 0.07, 0.026, 0.024, 0.01, 0.001])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_temperatures_on_both_sides_of_the_bounded_shift(seed, device, temperature, dtype):
    case = make_case(seed, 60, 400, 24, 4, dtype, device)
    assert_close_to_oracle(case, temperature=temperature, confidence_threshold=0.25)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(60, 400, 24, 4), (20, 9000, 8, 2), (30, 50, 16, 1)], ids=str)
def test_eps_of_the_authors_code(seed, device, shape, dtype):
    case = make_case(seed, *shape, dtype, device)
    assert_close_to_oracle(case, eps=1e-8, confidence_threshold=0.25)


def test_eps_caps_the_loss(device):
    # Anchor and positive opposite, a negative on the anchor: the loss is 20 without the cap.
    anchor = torch.tensor([[1.0, 0.0]], device=device)
    labels = torch.tensor([0], device=device)
    arguments = (anchor, -anchor, anchor, labels, labels + 1)
    assert cac_ext.masked_contrastive_loss(*arguments).item() == pytest.approx(20.0, abs=1e-4)
    capped = cac_ext.masked_contrastive_loss(*arguments, eps=1e-8).item()
    oracle = reference.masked_contrastive_loss(
        *(x.double() if x.is_floating_point() else x for x in arguments), eps=1e-8
    )
    assert capped == pytest.approx(oracle.item(), abs=1e-5)
    assert capped < 18.43


@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_label_types_agree(seed, device, label_dtype):
    case = make_case(seed, 70, 300, 16, 5, device=device)
    expected = cac_ext.directional_contrastive_loss(*case.arguments(), confidence_threshold=0.2)
    for name in ("pseudo_labels1", "pseudo_labels2", "negative_labels"):
        setattr(case, name, getattr(case, name).to(label_dtype))
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), confidence_threshold=0.2)
    assert torch.equal(loss, expected)


def test_labels_need_not_be_dense_or_positive(seed, device):
    case = make_case(seed, 70, 300, 16, 5, device=device)
    expected = cac_ext.directional_contrastive_loss(*case.arguments(), confidence_threshold=0.2)
    for name in ("pseudo_labels1", "pseudo_labels2", "negative_labels"):
        setattr(case, name, getattr(case, name) * 10**12 - 7)
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), confidence_threshold=0.2)
    assert torch.equal(loss, expected)


def test_strided_input_equals_contiguous_input(seed, device):
    case = make_case(seed, 70, 300, 16, 5, device=device)
    weights = upstream(case)
    expected = outcome(
        cac_ext.directional_contrastive_loss, case, weights, confidence_threshold=0.25
    )
    for name, value in vars(case).items():
        if value.dim() == 2:  # channels strided, as in a feature map [C, H W]
            setattr(case, name, value.T.contiguous().T)
        else:
            setattr(case, name, torch.stack([value, value], dim=1)[:, 0])
    strided = outcome(
        cac_ext.directional_contrastive_loss, case, weights, confidence_threshold=0.25
    )
    assert torch.equal(strided.losses, expected.losses)
    for x, y in zip(strided.gradients, expected.gradients, strict=True):
        assert torch.equal(x, y)


def test_rows_with_a_stride_are_read_in_place(seed):
    case = make_case(seed, 70, 300, 16, 5)
    wide = torch.cat([case.features1, case.features1], dim=1)
    loss = cac_ext.directional_contrastive_loss(*case.arguments())
    case.features1 = wide[:, :16]
    assert torch.equal(cac_ext.directional_contrastive_loss(*case.arguments()), loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_and_weights(seed, device, reduction, weighted, dtype):
    case = make_case(seed, 90, 300, 16, 5, dtype, device)
    assert_reductions_equal_oracle(case, reduction=reduction, weighted=weighted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ignore_index", [0, 1, -1])
def test_ignored_labels(seed, device, dtype, ignore_index):
    case = make_case(seed, 90, 300, 16, 5, dtype, device)
    assert_close_to_oracle(case, ignore_index=ignore_index, confidence_threshold=0.25)
    assert_reductions_equal_oracle(case, ignore_index=ignore_index)


def test_the_papers_normalizer_is_a_weighted_sum(seed, device):
    # 1 / (B N_b) for a pixel of image b: the mean over each image's pixels, then over images.
    case = make_case(seed, 90, 300, 16, 5, torch.float64, device)
    image = torch.arange(90, device=device) // 30 % 2  # images of 60 and of 30 pixels
    per_pixel = cac_ext.directional_contrastive_loss(*case.arguments(), reduction="none").sum(0)
    expected = (per_pixel[image == 0].mean() + per_pixel[image == 1].mean()) / 2
    weights = 1 / (2 * torch.bincount(image).double())[image]
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), weights=weights, reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("ignored", [{}, {"ignore_index": 1}], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_one_direction_equals_both(seed, arithmetic, eps, ignored):
    """Two calls of the one-directional loss give what one directional call gives."""
    case = make_case(seed, 75, 410, 40, 6, arithmetic)

    def one_by_one(x1, x2, c1, c2, y1, y2, negatives, labels, *, reduction, **options):
        assert reduction == "none"
        first_to_second, second_to_first = (c1 < c2) & (c2 > 0.75), (c2 < c1) & (c1 > 0.75)
        return torch.stack(
            [
                cac_ext.masked_contrastive_loss(
                    x1, x2.detach(), negatives, y1, labels, active=first_to_second, **options
                ),
                cac_ext.masked_contrastive_loss(
                    x2, x1.detach(), negatives, y2, labels, active=second_to_first, **options
                ),
            ]
        )

    assert_close_to_oracle(case, one_by_one, eps=eps, **ignored)


@pytest.mark.parametrize("ignored", [{}, {"ignore_index": 1}], ids=str)
@pytest.mark.parametrize("shape", [x for x in SHAPES if x[0] > 0], ids=str)
def test_logsumexp(seed, arithmetic, shape, ignored):
    assert_logsumexp_close_to_oracle(make_case(seed, *shape, arithmetic), **ignored)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalize_off_trusts_unit_vectors(seed, device, dtype):
    case = make_case(seed, 75, 410, 40, 6, torch.float64, device)
    unit = [
        torch.nn.functional.normalize(x, dim=1).to(dtype) if x.dim() == 2 else x
        for x in vars(case).values()
    ]
    assert_close_to_oracle(LossCase(*unit), normalize=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_vectors_without_direction_have_gradient_zero(device, dtype):
    """Rows no longer than the limit of torch.nn.functional.normalize."""
    anchors = torch.zeros(4, 4, dtype=dtype, device=device)
    anchors[1, 2] = 1e-13
    anchors[2, 1] = -8e-13
    anchors[3, 0] = 2e-12  # long enough
    others = torch.eye(4, dtype=dtype, device=device)
    labels = torch.zeros(4, dtype=torch.int64, device=device)

    def run(module, anchors, others):
        x = anchors.clone().requires_grad_()
        losses = module.masked_contrastive_loss(x, others.flip(0), others, labels, labels + 1)
        losses.sum().backward()
        return losses.detach().double(), x.grad.double()

    losses, gradient = run(cac_ext, anchors, others)
    exact_losses, exact_gradient = run(reference, anchors.double(), others.double())
    accuracy = 1e-13 if dtype == torch.float64 else 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(losses, exact_losses, rtol=accuracy, atol=0)
    assert (gradient[:3] == 0).all()
    assert (gradient[3] - exact_gradient[3]).norm() <= accuracy * exact_gradient[3].norm()


def test_extreme_margins_keep_their_gradient(device):
    # 1 - P_+ computed as such would vanish in float32 below 1e-7.
    anchor = torch.tensor([[1.0, 0.0]], device=device, requires_grad=True)
    positive = torch.tensor([[1.0, 1e-3]], device=device)
    negative = torch.tensor([[-1.0, 1e-3]], device=device)
    label = torch.tensor([0], device=device)
    loss = cac_ext.masked_contrastive_loss(
        anchor, positive, negative, label, label + 1, temperature=0.06
    )
    loss.sum().backward()
    exact = anchor.detach().double().requires_grad_()
    oracle = reference.masked_contrastive_loss(
        exact, positive.double(), negative.double(), label, label + 1, temperature=0.06
    )
    oracle.sum().backward()
    assert 0 < oracle.item() < 1e-12
    torch.testing.assert_close(loss.double(), oracle, rtol=1e-4, atol=0)
    torch.testing.assert_close(anchor.grad.double(), exact.grad, rtol=1e-3, atol=1e-22)
