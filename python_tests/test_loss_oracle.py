"""The oracle itself: numbers written out by hand, and torch's own cross-entropy."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from loss_cases import make_case
from torch import Tensor

from cac_ext import reference

TAU = 0.5


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_pixels_and_three_negatives() -> tuple[Tensor, ...]:
    """Vectors at right angles or in 3-4-5 triangles, of various lengths: their cosines are simple.

    Pixel 0 (class 0) sees negatives 1 and 2, pixel 1 (class 1) negatives 0 and 2.
    """
    return (
        rows((2.0, 0.0), (0.0, 3.0)),  # features1
        rows((3.0, 4.0), (0.0, 1.0)),  # features2: cosines 0.6 and 1 with features1
        torch.tensor([0.5, 0.9], dtype=torch.float64),  # confidences1
        torch.tensor([0.8, 0.6], dtype=torch.float64),  # confidences2
        torch.tensor([0, 1]),  # pseudo_labels1
        torch.tensor([0, 1]),  # pseudo_labels2
        rows((5.0, 0.0), (0.0, 0.5), (-1.0, 0.0)),  # negatives
        torch.tensor([0, 1, 2]),  # negative_labels
    )


def r(cosine: float) -> float:
    return math.exp(cosine / TAU)


# Direction 1 -> 2. Pixel 0: a = (1, 0), p = (.6, .8), negatives (0, 1) and (-1, 0).
#                   Pixel 1: a = (0, 1), p = (0, 1), negatives (1, 0) and (-1, 0).
FIRST = (
    -math.log(r(0.6) / (r(0.6) + r(0) + r(-1))),
    -math.log(r(1) / (r(1) + r(0) + r(0))),
)
# Direction 2 -> 1. Pixel 0: a = (.6, .8), p = (1, 0). Pixel 1: a = (0, 1), p = (0, 1).
SECOND = (
    -math.log(r(0.6) / (r(0.6) + r(0.8) + r(-0.6))),
    -math.log(r(1) / (r(1) + r(0) + r(0))),
)


def close(value: Tensor, *expected: float) -> None:
    torch.testing.assert_close(value, rows(expected).reshape(value.shape), rtol=1e-14, atol=1e-15)


def test_one_direction_by_hand():
    x1, x2, _, _, y1, y2, negatives, labels = two_pixels_and_three_negatives()
    losses = reference.masked_contrastive_loss(x1, x2, negatives, y1, labels, temperature=TAU)
    close(losses, *FIRST)
    losses = reference.masked_contrastive_loss(x2, x1, negatives, y2, labels, temperature=TAU)
    close(losses, *SECOND)
    sums = reference.masked_logsumexp(x1, negatives, y1, labels, temperature=TAU)
    close(sums, math.log(r(0) + r(-1)), math.log(r(0) + r(0)))


def test_without_normalization_products_count():
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    losses = reference.masked_contrastive_loss(
        x1, x2, negatives, y1, labels, temperature=TAU, normalize=False
    )
    close(
        losses,
        -math.log(r(6) / (r(6) + r(0) + r(-2))),
        -math.log(r(3) / (r(3) + r(0) + r(0))),
    )


@pytest.mark.parametrize(
    ("threshold", "first_to_second", "second_to_first"),
    [
        (0.7, (True, False), (False, True)),  # 0.5 < 0.8 > 0.7, and 0.6 < 0.9 > 0.7
        (0.8, (False, False), (False, True)),  # 0.8 is not above itself
        (0.9, (False, False), (False, False)),
        (0.0, (True, False), (False, True)),  # never both directions
    ],
)
def test_direction_masks_by_hand(threshold, first_to_second, second_to_first):
    _, _, c1, c2, *_ = two_pixels_and_three_negatives()
    masks = reference.direction_masks(c1, c2, threshold)
    assert masks.tolist() == [list(first_to_second), list(second_to_first)]
    equal = reference.direction_masks(c1, c1, 0.0)
    assert not equal.any()


@pytest.mark.parametrize(
    ("reduction", "weights", "expected"),
    [
        ("none", None, (FIRST[0], 0.0, 0.0, SECOND[1])),
        ("sum", None, (FIRST[0] + SECOND[1],)),
        ("mean", None, (FIRST[0] / 2 + SECOND[1] / 2,)),
        ("active_mean", None, (FIRST[0] / 1 + SECOND[1] / 1,)),
        ("active_mean_each", None, (FIRST[0], SECOND[1])),
        ("none", (3.0, 5.0), (3 * FIRST[0], 0.0, 0.0, 5 * SECOND[1])),
        ("sum", (3.0, 5.0), (3 * FIRST[0] + 5 * SECOND[1],)),
        ("mean", (3.0, 5.0), ((3 * FIRST[0] + 5 * SECOND[1]) / 2,)),
        ("active_mean", (3.0, 5.0), (3 * FIRST[0] + 5 * SECOND[1],)),
        ("active_mean_each", (3.0, 5.0), (3 * FIRST[0], 5 * SECOND[1])),
    ],
)
def test_every_reduction_by_hand(reduction, weights, expected):
    loss = reference.directional_contrastive_loss(
        *two_pixels_and_three_negatives(),
        temperature=TAU,
        confidence_threshold=0.7,
        reduction=reduction,
        weights=None if weights is None else rows(weights)[0],
    )
    close(loss, *expected)


def test_active_means_divide_by_the_active_pixels_of_a_direction():
    x1, x2, _, _, y1, y2, negatives, labels = two_pixels_and_three_negatives()
    options = {"temperature": TAU, "confidence_threshold": 0.7}
    low, high = rows((0.1, 0.2))[0], rows((0.9, 0.8))[0]
    arguments = (x1, x2, low, high, y1, y2, negatives, labels)  # both pixels towards view 2
    for reduction, expected in {
        "active_mean": (sum(FIRST) / 2,),
        "active_mean_each": (sum(FIRST) / 2, 0.0),
        "mean": (sum(FIRST) / 2,),
        "sum": (sum(FIRST),),
    }.items():
        close(
            reference.directional_contrastive_loss(*arguments, reduction=reduction, **options),
            *expected,
        )


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match=r"'active_mean_each'.*'median'"):
        reference.directional_contrastive_loss(
            *two_pixels_and_three_negatives(), reduction="median"
        )


def test_eps_by_hand():
    """eps is added to the denominator in units of the row maximum, and inside the logarithm."""
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    eps = 0.01
    losses = reference.masked_contrastive_loss(
        x1, x2, negatives, y1, labels, temperature=TAU, eps=eps
    )
    # The maximum of pixel 0 is its own class's negative, of cosine 1; that of pixel 1 its positive.
    close(
        losses,
        -math.log(r(0.6 - 1) / (r(0.6 - 1) + r(0 - 1) + r(-1 - 1) + eps) + eps),
        -math.log(r(1 - 1) / (r(1 - 1) + r(0 - 1) + r(0 - 1) + eps) + eps),
    )


def test_the_maximum_for_eps_is_over_the_first_chunk_only():
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    eps, filler = 0.01, reference.LEADING_CHUNK
    # The negative of cosine 1 with pixel 0 comes after the chunk, and so does one of class 1.
    many = torch.cat([negatives[2:].expand(filler, 2), negatives])
    many_labels = torch.cat([labels[2:].expand(filler), labels])
    losses = reference.masked_contrastive_loss(
        x1[:1], x2[:1], many, y1[:1], many_labels, temperature=TAU, eps=eps
    )
    maximum = 0.6
    others = r(0 - maximum) + (filler + 1) * r(-1 - maximum)
    close(losses, -math.log(1 / (1 + others + eps) + eps))


def test_a_far_larger_negative_after_the_chunk_leaves_a_finite_loss():
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    filler = reference.LEADING_CHUNK
    many = torch.cat([negatives[2:].expand(filler, 2), -negatives[2:]])
    anchors = x1[:1].requires_grad_()
    loss = reference.masked_contrastive_loss(
        anchors, x2[:1], many, y1[:1], labels[2:].expand(filler + 1), temperature=1e-3, eps=1e-8
    )
    close(loss, -math.log(1e-8))
    loss.sum().backward()
    assert anchors.grad.norm() < 1e-100


def test_ignored_pixels_are_inactive_and_ignored_negatives_absent():
    x1, x2, c1, c2, y1, y2, negatives, labels = two_pixels_and_three_negatives()
    options = {"temperature": TAU, "confidence_threshold": 0.7}
    # The negative of class 2 is ignored.
    arguments = (x1, x2, c1, c2, y1, y2, negatives, labels)
    loss = reference.directional_contrastive_loss(
        *arguments, reduction="none", ignore_index=2, **options
    )
    first = -math.log(r(0.6) / (r(0.6) + r(0)))
    second = -math.log(r(1) / (r(1) + r(0)))
    close(loss, first, 0.0, 0.0, second)
    # Pixel 1's class in view 2, where it is the anchor, is ignored; so is no negative.
    arguments = (x1, x2, c1, c2, y1, torch.tensor([0, 255]), negatives, labels)
    for reduction, expected in {
        "none": (FIRST[0], 0.0, 0.0, 0.0),
        "active_mean": (FIRST[0],),
        "active_mean_each": (FIRST[0], 0.0),
        "mean": (FIRST[0] / 2,),
    }.items():
        loss = reference.directional_contrastive_loss(
            *arguments, reduction=reduction, ignore_index=255, **options
        )
        close(loss, *expected)
    # A label that is not ignored keeps its negatives whatever the other view says.
    sums = reference.masked_logsumexp(
        x1, negatives, torch.tensor([0, 255]), labels, temperature=TAU, ignore_index=255
    )
    close(sums, math.log(r(0) + r(-1)), 0.0)


def test_ignored_negatives_do_not_move_the_maximum_for_eps():
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    options = {"temperature": TAU, "eps": 0.01}
    some = reference.masked_contrastive_loss(
        x1, x2, negatives, y1, torch.tensor([255, 1, 2]), ignore_index=255, **options
    )
    without = reference.masked_contrastive_loss(x1, x2, negatives[1:], y1, labels[1:], **options)
    assert torch.equal(some, without)


def test_equals_torchs_cross_entropy(seed):
    """The loss is the cross-entropy of [positive, negatives], target 0, without the own class."""
    case = make_case(seed, 60, 90, 12, 4, torch.float64)
    anchors = [case.features1.clone().requires_grad_() for _ in range(2)]
    losses = reference.masked_contrastive_loss(
        anchors[0], case.features2, case.negatives, case.pseudo_labels1, case.negative_labels
    )
    a, p, n = (
        torch.nn.functional.normalize(x, dim=1)
        for x in (anchors[1], case.features2, case.negatives)
    )
    expected = []
    for i in range(60):
        others = n[case.negative_labels != case.pseudo_labels1[i]]
        logits = torch.cat([p[i : i + 1], others]) @ a[i] / 0.1
        expected.append(torch.nn.functional.cross_entropy(logits, torch.tensor(0)))
    expected = torch.stack(expected)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-14)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(anchors[0].grad, anchors[1].grad, rtol=1e-10, atol=1e-12)


def test_gradient_reaches_what_asks_for_it_but_the_anchors_alone_in_both_directions():
    x1, x2, c1, c2, y1, y2, negatives, labels = two_pixels_and_three_negatives()
    for tensor in (x1, x2, negatives):
        tensor.requires_grad_()
    reference.directional_contrastive_loss(
        x1, x2, c1, c2, y1, y2, negatives, labels, confidence_threshold=0.0
    ).backward()
    assert negatives.grad is None
    x1.grad = x2.grad = None
    losses = reference.masked_contrastive_loss(x1, x2, negatives, y1, labels, temperature=TAU)
    losses.sum().backward()
    assert x2.grad.abs().sum() > 0
    assert negatives.grad.abs().sum() > 0
    # Pixel 0 by hand: (sum_n P_n n - (1 - P_+) p) / tau / |a|, projected on the tangent (0, 1).
    total = r(0.6) + r(0) + r(-1)
    tangent = (r(0) / total * 1 - (1 - r(0.6) / total) * 0.8) / TAU / 2
    close(x1.grad[0], 0.0, tangent)


def test_vectors_of_any_length_have_their_direction():
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    for scale in (1e-11, 1e-3, 1e200, 1e300):
        anchors = (x1 * scale).requires_grad_()
        losses = reference.masked_contrastive_loss(
            anchors, x2 * scale, negatives * scale, y1, labels, temperature=TAU
        )
        close(losses, *FIRST)
        losses.sum().backward()
        plain = x1.clone().requires_grad_()
        reference.masked_contrastive_loss(
            plain, x2, negatives, y1, labels, temperature=TAU
        ).sum().backward()
        torch.testing.assert_close(anchors.grad * scale, plain.grad, rtol=1e-12, atol=1e-14)


def test_a_vector_without_direction_is_divided_by_a_constant_and_has_gradient_zero():
    _, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    anchors = rows((0.0, 0.0), (6e-13, -2e-13)).requires_grad_()
    losses = reference.masked_contrastive_loss(anchors, x2, negatives, y1, labels, temperature=TAU)
    # Pixel 1: a = (.6, -.2), p = (0, 1), negatives (1, 0) and (-1, 0).
    close(
        losses,
        -math.log(1 / 3),
        -math.log(r(-0.2) / (r(-0.2) + r(0.6) + r(-0.6))),
    )
    losses.sum().backward()
    assert (anchors.grad == 0).all()


def test_without_a_differing_negative_the_sum_is_empty():
    x1, x2, _, _, _, _, negatives, _ = two_pixels_and_three_negatives()
    same = torch.zeros(3, dtype=torch.int64)
    for count in (3, 0):
        anchors = x1.clone().requires_grad_()
        arguments = (negatives[:count], same[:2], same[:count])
        sums = reference.masked_logsumexp(anchors, *arguments)
        assert (sums == -math.inf).all()
        losses = reference.masked_contrastive_loss(anchors, x2, *arguments)
        assert (losses == 0).all()
        (sums.sum() + losses.sum()).backward()
        assert (anchors.grad == 0).all()


def test_a_nan_that_counts_is_seen_and_one_that_does_not_is_not():
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    anchors = x1.clone()
    anchors[1, 0] = math.nan
    sums = reference.masked_logsumexp(anchors, negatives, y1, labels, temperature=TAU)
    assert sums.isnan().tolist() == [False, True]
    negatives[1, 1] = math.nan  # of class 1
    sums = reference.masked_logsumexp(x1, negatives, y1, labels, temperature=TAU)
    assert sums.isnan().tolist() == [True, False]
    losses = reference.masked_contrastive_loss(x1, x2, negatives, y1, labels, temperature=TAU)
    assert losses.isnan().tolist() == [True, False]


def test_an_inactive_anchor_has_gradient_zero_beside_a_nan():
    x1, x2, _, _, y1, _, negatives, labels = two_pixels_and_three_negatives()
    x2[1, 0] = math.nan
    anchors = x1.requires_grad_()
    losses = reference.masked_contrastive_loss(
        anchors, x2, negatives, y1, labels, temperature=TAU, active=torch.tensor([True, False])
    )
    close(losses, FIRST[0], 0.0)
    losses.sum().backward()
    assert (anchors.grad[1] == 0).all()
    assert anchors.grad[0].isfinite().all()
    assert anchors.grad[0].norm() > 0.01


def test_the_oracle_and_what_it_judges_share_no_code():
    package = Path(reference.__file__).parent
    imported = {
        path.relative_to(package).as_posix(): {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        for path in package.rglob("*.py")
    }
    assert {name.split(".")[0] for name in imported["reference.py"]} == {
        "__future__",
        "math",
        "torch",
        "typing",
    }
    users = {
        name
        for name, names in imported.items()
        if any(x.startswith("cac_ext.reference") for x in names)
    }
    # One exports it, the other judges an installation by it.
    assert users == {"_public.py", "diagnosis.py"}, "nothing that computes uses the oracle"
