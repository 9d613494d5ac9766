"""Masked anchors give exactly zero, and cases that the formula leaves undefined have a value."""

from __future__ import annotations

import pytest
import torch
from loss_cases import make_case

import cac_ext


def test_inactive_anchors_have_zero_loss_and_exactly_zero_gradient(seed, device):
    case = make_case(seed, 120, 300, 16, 4, device=device)
    case.features1.requires_grad_()
    case.features2.requires_grad_()
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), reduction="none")  # [2, A]
    loss.sum().backward()
    active = cac_ext.reference.direction_masks(case.confidences1, case.confidences2, 0.75)
    assert active.any()
    assert not active.all(dim=0).any()
    assert (loss[~active] == 0).all()
    assert (case.features1.grad[~active[0]] == 0).all()
    assert (case.features2.grad[~active[1]] == 0).all()
    assert (case.features1.grad[active[0]] != 0).any(dim=1).all()


def test_both_comparisons_are_strict(device):
    # Equal confidences, and a positive exactly at the threshold: nobody is an anchor.
    confidences1 = torch.tensor([0.9, 0.5, 0.75], device=device)
    confidences2 = torch.tensor([0.9, 0.75, 0.5], device=device)
    features = torch.eye(3, device=device)
    labels = torch.arange(3, device=device)
    loss = cac_ext.directional_contrastive_loss(
        features, features, confidences1, confidences2, labels, labels, features, labels + 5,
        confidence_threshold=0.75, reduction="none",
    )  # fmt: skip
    assert (loss == 0).all()


def test_nothing_active_gives_zero_and_zero_gradients(seed, device):
    case = make_case(seed, 50, 100, 8, 3, device=device)
    case.features1.requires_grad_()
    case.features2.requires_grad_()
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), confidence_threshold=1.0)
    loss.backward()
    assert loss.item() == 0
    assert (case.features1.grad == 0).all()
    assert (case.features2.grad == 0).all()


@pytest.mark.parametrize("reduction", ["active_mean", "mean", "sum", "none"])
def test_an_empty_overlap_gives_zero(seed, device, reduction):
    case = make_case(seed, 0, 100, 8, 3, device=device)
    case.features1.requires_grad_()
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), reduction=reduction)
    loss.sum().backward()
    assert loss.sum().item() == 0
    assert case.features1.grad.shape == (0, 8)


@pytest.mark.parametrize("negatives", [0, 60])
def test_without_a_differing_negative_the_loss_is_zero(seed, device, negatives):
    case = make_case(seed, 50, negatives, 8, 1, device=device)
    case.features1.requires_grad_()
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), confidence_threshold=0.0)
    loss.backward()
    assert loss.item() == 0
    assert (case.features1.grad == 0).all()
    logsumexp = cac_ext.masked_logsumexp(
        case.features1, case.negatives, case.pseudo_labels1, case.negative_labels
    )
    assert (logsumexp == float("-inf")).all()
    (gradient,) = torch.autograd.grad(logsumexp.sum(), case.features1)
    assert (gradient == 0).all()


def test_labels_of_their_own_turn_the_mask_off(seed, device):
    # Exp. III of the paper's Table 3: every negative counts, the anchor's own copy too.
    case = make_case(seed, 40, 0, 8, 3, torch.float64, device)
    loss = cac_ext.masked_contrastive_loss(
        case.features1, case.features2, case.features1, case.pseudo_labels1,
        torch.full_like(case.pseudo_labels1, -1),
    )  # fmt: skip
    unit = torch.nn.functional.normalize(case.features1, dim=1)
    positive = (unit * torch.nn.functional.normalize(case.features2, dim=1)).sum(1) / 0.1
    everything = torch.cat([positive[:, None], unit @ unit.T / 0.1], dim=1)
    torch.testing.assert_close(loss, everything.logsumexp(1) - positive)


def test_active_selects_anchors(seed, device):
    case = make_case(seed, 40, 90, 8, 3, device=device)
    active = case.confidences1 > 0.5
    arguments = (
        case.features1, case.features2, case.negatives, case.pseudo_labels1, case.negative_labels
    )  # fmt: skip
    everything = cac_ext.masked_contrastive_loss(*arguments)
    some = cac_ext.masked_contrastive_loss(*arguments, active=active)
    torch.testing.assert_close(some, everything * active, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["active_mean", "none"])
def test_the_direction_is_returned_as_the_oracle_has_it(seed, device, reduction):
    """Eq. 7, for every order of the confidences, at the threshold too, and for ignored anchors."""
    case = make_case(seed, 320, 200, 8, 4, device=device)
    levels = torch.tensor([0.5, 0.75, 0.8, 0.9], device=device)
    grid = torch.cartesian_prod(levels, levels)  # [16, 2]
    rows = torch.arange(len(case.confidences1)) % len(grid)
    case.confidences1, case.confidences2 = grid[rows].T.contiguous()
    options = {"reduction": reduction, "ignore_index": 1, "return_direction": True}
    loss, direction = cac_ext.directional_contrastive_loss(*case.arguments(), **options)
    alone = cac_ext.directional_contrastive_loss(
        *case.arguments(), reduction=reduction, ignore_index=1
    )
    assert torch.equal(loss, alone)
    _, expected = cac_ext.reference.directional_contrastive_loss(*case.arguments(), **options)
    assert direction.unique().tolist() == [0, 1, 2]
    assert torch.equal(direction.long(), expected)
