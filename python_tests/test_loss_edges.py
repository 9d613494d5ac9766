"""Inputs at the edges: rows of any length, any temperature, zero rows, ignored labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cac_ext
from cac_ext import _C

CLASSES = 4


def naive(anchors, positives, negatives, anchor_labels, labels, tau, *, normalize, ignore=None):
    """Eq. 1 and 5 of each anchor, written out in float64, ``[A]``."""
    anchors, positives, negatives = (x.double() for x in (anchors, positives, negatives))
    if normalize:
        anchors, positives, negatives = (
            x / (x / x.abs().amax(1, True)).norm(dim=1, keepdim=True) / x.abs().amax(1, True)
            for x in (anchors, positives, negatives)
        )
    logits = anchors @ negatives.T / tau
    differs = anchor_labels[:, None] != labels[None, :]
    if ignore is not None:
        differs &= (labels != ignore)[None, :]
    positive = (anchors * positives).sum(1, keepdim=True) / tau
    scores = torch.cat([positive, logits.masked_fill(~differs, -torch.inf)], dim=1)
    loss = scores.logsumexp(dim=1) - positive[:, 0]
    return loss if ignore is None else torch.where(anchor_labels != ignore, loss, 0.0)


def draw(seed, count=40, others=150, channels=24, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = [torch.randint(CLASSES, (n,), generator=generator) for n in (count, others)]
    return randn(count, channels), randn(count, channels), randn(others, channels), *labels


def both(anchors, positives, negatives, labels, negative_labels, tau, **options):
    """Our loss and gradient, and those of the formula in float64."""
    found = []
    for function, inputs in (
        (cac_ext.masked_contrastive_loss, (anchors, positives, negatives)),
        (naive, (anchors.double(), positives, negatives)),
    ):
        leaf = inputs[0].clone().requires_grad_()
        if function is naive:
            ours = {"ignore": options.get("ignore_index")}
            loss = naive(leaf, *inputs[1:], labels, negative_labels, tau,
                         normalize=options.get("normalize", True), **ours)  # fmt: skip
        else:
            loss = function(leaf, *inputs[1:], labels, negative_labels, temperature=tau, **options)
        loss.sum().backward()
        found += [loss.detach().double(), leaf.grad.double()]
    return found


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-300)).item()


@pytest.fixture(params=[*_C.cpu_capabilities(), "aten"])
def processor(request):
    """Every instruction set, and the fallback without kernels."""
    best = _C.cpu_capability()
    if request.param == "aten":
        _C.replace_cpu_backend_by_aten(True)
    else:
        _C.limit_cpu_capability(request.param)
    yield request.param
    _C.replace_cpu_backend_by_aten(False)
    _C.limit_cpu_capability(best)


@pytest.mark.parametrize("norm", [3.0, 4.0, 30.0, 1e-3, 1e-15, 1e-35, 1e12])
@pytest.mark.parametrize("tau", [1e-3, 0.07, 10.0])
def test_rows_of_any_length_are_compared_by_their_products(seed, processor, norm, tau):
    anchors, positives, negatives, *labels = draw(seed)
    unit = [F.normalize(x) for x in (anchors, positives, negatives)]
    rows = [norm * unit[0], unit[1], (norm if norm < 1e10 else 1.0) * unit[2]]
    loss, gradient, expected, expected_gradient = both(*rows, *labels, tau, normalize=False)
    largest = max(norm, norm**2) / tau  # of the logits, whose rounding the loss carries
    tolerance = 3e-6 * max(1.0, largest)
    assert (loss - expected).abs().max() <= tolerance + 1e-6 * expected.abs().max()
    if largest < 1e3:
        assert relative(gradient, expected_gradient) < 2e-5 * max(1.0, largest)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "norms"),
    [
        (torch.float32, (1e20, 1e30, 1e-10, 3.0)),
        (torch.bfloat16, (1e20, 1e-10)),
        (torch.float16, (1e-3, 3e3)),
        (torch.float64, (1e200, 1e300, 1e-11)),
    ],
)
def test_lengths_do_not_matter_to_directions(seed, processor, dtype, norms):
    """The squares of all three operands stay in the range of their type."""
    *rows, labels, negative_labels = draw(seed)
    unit = [F.normalize(x.double()) for x in rows]
    coarse = {torch.float32: 1e-5, torch.float64: 1e-11}.get(dtype, 0.04)
    for norm, which in itertools.product(norms, range(3)):
        scaled = [norm * x if which == i else x for i, x in enumerate(unit)]
        loss, gradient, expected, expected_gradient = both(
            *(x.to(dtype) for x in scaled), labels, negative_labels, 0.1
        )
        assert relative(loss, expected) < coarse, (norm, which)
        scale = expected_gradient.norm()
        if dtype == torch.float16 or scale > 1e-30:
            assert relative(gradient, expected_gradient) < max(coarse, 1e-5), (norm, which)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_row_without_direction_has_no_gradient(seed, processor, dtype):
    anchors, positives, negatives, *labels = draw(seed, dtype=dtype)
    anchors[3] = positives[5] = negatives[7] = 0
    leaf = anchors.clone().requires_grad_()
    loss = cac_ext.masked_contrastive_loss(leaf, positives, negatives, *labels)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[3] == 0).all()
    others = torch.arange(len(anchors)) != 3
    assert (leaf.grad[others].abs().sum(dim=1) > 0).all()
    # Its cosines are all 0.
    differing = (labels[1] != labels[0][3]).sum()
    assert loss[3].item() == pytest.approx((1.0 + differing.double()).log().item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_small_row_s_gradient_is_rounded_once(seed, processor, dtype):
    anchors, positives, negatives, *labels = draw(seed)
    anchors = (F.normalize(anchors) * 1e-4).to(dtype)
    rest = positives.to(dtype), negatives.to(dtype)
    weight = 2.0**-16  # as of a mean over pixels: the sum's gradient does not fit into float16
    leaf, wide = anchors.clone().requires_grad_(), anchors.double().requires_grad_()
    (cac_ext.masked_contrastive_loss(leaf, *rest, *labels).sum() * weight).backward()
    (naive(wide, *rest, *labels, 0.1, normalize=True).sum() * weight).backward()
    assert leaf.grad.isfinite().all()
    assert relative(leaf.grad.double(), wide.grad) < 0.03


@pytest.mark.parametrize("factor", [torch.inf, torch.nan])
def test_a_pixel_that_is_no_anchor_keeps_the_gradient_zero(seed, factor):
    one, two, negatives, labels, negative_labels = draw(seed, count=60)
    confidences = torch.rand(2, 60, generator=torch.Generator().manual_seed(seed))
    leaves = [x.clone().requires_grad_() for x in (one, two)]
    loss = cac_ext.directional_contrastive_loss(
        *leaves, *confidences, labels, labels, negatives, negative_labels, reduction="none"
    )
    loss.backward(torch.full_like(loss, factor))
    towards = (confidences[0] < confidences[1]) & (confidences[1] > 0.75)
    assert (leaves[0].grad[~towards] == 0).all()
    assert not leaves[0].grad[towards].isfinite().any(dim=1).all() or not towards.any()


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("ignore", [255, -1, 2])
def test_an_ignored_label_takes_no_part(seed, processor, eps, ignore):
    anchors, positives, negatives, labels, negative_labels = draw(seed, others=9000 if eps else 150)
    generator = torch.Generator().manual_seed(seed)
    for part in (labels, negative_labels):
        part[torch.rand(len(part), generator=generator) < 0.3] = ignore
    leaf = anchors.clone().requires_grad_()
    options = {"eps": eps, "ignore_index": ignore}
    given = (leaf, positives, negatives, labels, negative_labels)
    loss = cac_ext.masked_contrastive_loss(*given, **options)
    loss.sum().backward()
    counted = negative_labels != ignore
    reduced = anchors.clone().requires_grad_()
    active = labels != ignore
    expected = cac_ext.masked_contrastive_loss(
        reduced, positives, negatives[counted], labels, negative_labels[counted], active=active,
        eps=eps,
    )  # fmt: skip
    expected.sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(leaf.grad, reduced.grad, rtol=1e-5, atol=1e-6)
    assert (loss[~active] == 0).all()
    prepared = cac_ext.prepare_negatives(negatives, negative_labels, ignore_index=ignore)
    again = cac_ext.masked_contrastive_loss(anchors, positives, prepared, labels, **options)
    assert torch.equal(again, loss)

    sums = cac_ext.masked_logsumexp(anchors, prepared, labels, ignore_index=ignore)
    assert (sums[~active] == 0).all()
    kept = cac_ext.masked_logsumexp(anchors, negatives[counted], labels, negative_labels[counted])
    torch.testing.assert_close(sums[active], kept[active], rtol=1e-6, atol=1e-6)


def test_an_ignored_pixel_is_not_counted_by_the_mean(seed):
    one, two, negatives, labels, negative_labels = draw(seed)
    low, high = torch.full((40,), 0.3), torch.full((40,), 0.9)
    module = cac_ext.DirectionalContrastiveLoss(ignore_index=255)
    labels[::2] = 255
    loss = module(one, two, low, high, labels, labels, negatives, negative_labels)
    each = cac_ext.masked_contrastive_loss(one, two, negatives, labels, negative_labels)
    assert loss.item() == pytest.approx(each[1::2].mean().item(), rel=1e-6)
    everything = torch.full_like(labels, 255)
    assert module(one, two, low, high, everything, everything, negatives, negative_labels) == 0
    nothing = module(
        one, two, low, high, labels, labels, negatives, torch.full_like(negative_labels, 255)
    )
    assert nothing == 0


def test_both_directions_means_apart(seed):
    one, two, negatives, labels, negative_labels = draw(seed)
    confidences = torch.rand(2, 40, generator=torch.Generator().manual_seed(seed))
    given = (one, two, *confidences, labels, labels, negatives, negative_labels)
    weights = torch.rand(40, generator=torch.Generator().manual_seed(seed + 1))
    for factor in (None, weights):
        each = cac_ext.directional_contrastive_loss(
            *given, reduction="active_mean_each", weights=factor
        )
        losses = cac_ext.directional_contrastive_loss(*given, reduction="none", weights=factor)
        low, high = confidences.minimum(confidences.flip(0)), confidences.flip(0)
        active = (confidences < high) & (high > 0.75) & (confidences == low)  # [2, A]
        expected = [x[m].mean() if m.any() else 0.0 for x, m in zip(losses, active, strict=True)]
        assert each.tolist() == pytest.approx([float(x) for x in expected], rel=1e-5)
        total = cac_ext.directional_contrastive_loss(*given, weights=factor)
        assert each.sum().item() == pytest.approx(total.item(), rel=1e-6)


def test_weights_of_pixels_may_be_learned(seed):
    one, two, negatives, labels, negative_labels = draw(seed)
    confidences = torch.rand(2, 40, generator=torch.Generator().manual_seed(seed))
    weights = torch.rand(40, requires_grad=True)
    given = (one, two, *confidences, labels, labels, negatives, negative_labels)
    cac_ext.directional_contrastive_loss(*given, weights=weights, reduction="sum").backward()
    losses = cac_ext.directional_contrastive_loss(*given, reduction="none")
    torch.testing.assert_close(weights.grad, losses.sum(dim=0))


@pytest.mark.parametrize("tau", [1e-3, 0.01, 0.03])
def test_eps_copes_with_negatives_far_above_the_first_ones(seed, processor, tau):
    """The row maximum covers the first 8000 negatives: a later one may exceed it by any amount."""
    anchors, positives, negatives, _, negative_labels = draw(seed, count=6, others=8100)
    anchors = F.normalize(anchors)
    negatives[:8000] = -anchors[torch.arange(8000) % 6]
    negatives[8000:] = anchors[torch.arange(100) % 6]
    positives = -anchors
    leaf = anchors.clone().requires_grad_()
    loss = cac_ext.masked_contrastive_loss(
        leaf, positives, negatives, torch.full((6,), -5), negative_labels, temperature=tau, eps=1e-8
    )
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-np.log(1e-8)] * 6, rel=1e-4)
    assert leaf.grad.isfinite().all()


def test_products_beyond_float32_are_refused_by_name(seed):
    anchors, positives, negatives, *labels = draw(seed)
    with pytest.raises(ValueError, match=r"too long for normalize=False.*normalize=True"):
        cac_ext.masked_contrastive_loss(
            1e20 * anchors, positives, 1e20 * negatives, *labels, normalize=False
        )
    loss = cac_ext.masked_contrastive_loss(1e20 * anchors, positives, 1e20 * negatives, *labels)
    assert loss.isfinite().all()


def test_inputs_that_share_memory_or_repeat_a_row(seed):
    anchors, positives, negatives, labels, negative_labels = draw(seed)
    cases = [
        (anchors[:1].expand(40, -1), positives, negatives),
        (anchors, anchors, torch.cat([anchors] * 4)[:150]),
        (anchors.T.contiguous().T, positives[:, ::2].repeat(1, 2), negatives.flip(0)),
    ]
    for rows in cases:
        loss, gradient, expected, expected_gradient = both(*rows, labels, negative_labels, 0.1)
        assert relative(loss, expected) < 1e-5
        assert relative(gradient, expected_gradient) < 1e-4
    with torch.inference_mode():
        assert cac_ext.masked_contrastive_loss(*cases[0], labels, negative_labels).isfinite().all()
