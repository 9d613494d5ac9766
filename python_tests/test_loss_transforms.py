"""First derivatives by every way of torch; a second one is refused, never silently 0."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import cac_ext


@pytest.fixture
def rows(seed):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = [torch.randint(3, (n,), generator=generator) for n in (12, 40)]
    return randn(12, 6), randn(12, 6), randn(40, 6), *labels


def losses(rows):
    """Each public function, as a function of its anchors."""
    anchors, positives, negatives, labels, negative_labels = rows
    confidences = torch.linspace(0.1, 0.9, 12), torch.linspace(0.95, 0.8, 12)

    def directional(x):
        return cac_ext.directional_contrastive_loss(
            x, positives, *confidences, labels, labels, negatives, negative_labels
        )

    return {
        "directional": directional,
        "one direction": lambda x: cac_ext.masked_contrastive_loss(
            x, positives, negatives, labels, negative_labels
        ).sum(),
        "logsumexp": lambda x: cac_ext.masked_logsumexp(
            x, negatives, labels, negative_labels
        ).sum(),
    }, anchors


@pytest.mark.parametrize("name", ["directional", "one direction", "logsumexp"])
def test_every_first_derivative_is_that_of_backward(rows, name):
    functions, anchors = losses(rows)
    loss = functions[name]
    leaf = anchors.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad.abs().sum() > 0
    torch.testing.assert_close(torch.func.grad(loss)(anchors), leaf.grad)
    value, pull = torch.func.vjp(loss, anchors)
    torch.testing.assert_close(pull(torch.ones_like(value))[0], leaf.grad)
    torch.testing.assert_close(torch.func.jacrev(loss)(anchors), leaf.grad)
    tangent = torch.randn_like(anchors)
    _, along = torch.func.jvp(loss, (anchors,), (tangent,))
    torch.testing.assert_close(along, (leaf.grad * tangent).sum())
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(anchors, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, along)


def test_create_graph_works_where_the_loss_is_differentiated_once(rows):
    functions, anchors = losses(rows)
    for loss in functions.values():
        leaf, other = anchors.clone().requires_grad_(), torch.tensor(3.0, requires_grad=True)
        total = loss(leaf) + other**3
        gradient, penalty = torch.autograd.grad(total, (leaf, other), create_graph=True)
        penalty.square().backward()  # (3 x^2)^2
        assert other.grad.item() == pytest.approx(36 * 3.0**3)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.square().sum().backward()


def test_a_second_derivative_by_transforms_is_refused(rows):
    functions, anchors = losses(rows)
    for loss in functions.values():
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.func.jacrev(torch.func.grad(loss))(anchors)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["eps", "confidence_threshold"])
def test_a_number_that_is_to_be_learned_is_refused_by_name(rows, name, compiled):
    anchors, positives, negatives, labels, negative_labels = rows
    confidences = torch.rand(2, 12)

    def loss(value):
        return cac_ext.directional_contrastive_loss(
            anchors, positives, *confidences, labels, labels, negatives, negative_labels,
            **{name: value},
        )  # fmt: skip

    learned = torch.nn.Parameter(torch.tensor(0.1))
    function = torch.compile(loss) if compiled else loss
    with pytest.raises(Exception, match=f"{name} requires a gradient"):
        function(learned)
    torch.testing.assert_close(loss(learned.detach()), loss(float(learned)))


def test_confidences_are_constants(rows):
    anchors, positives, negatives, labels, negative_labels = rows
    confidences = torch.rand(2, 12, requires_grad=True)
    leaf = anchors.clone().requires_grad_()
    loss = cac_ext.directional_contrastive_loss(
        leaf, positives, *confidences, labels, labels, negatives, negative_labels,
        confidence_threshold=0.0,
    )  # fmt: skip
    loss.backward()
    assert confidences.grad is None
    assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["directional", "one direction", "logsumexp"])
def test_forward_mode_takes_no_second_derivative_for_a_constant(rows, name):
    functions, anchors = losses(rows)
    loss, tangent = functions[name], torch.ones_like(anchors)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda x: torch.func.jvp(loss, (x,), (tangent,))[1])(anchors)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.jvp(torch.func.grad(loss), (anchors,), (tangent,))
    with forward_ad.dual_level():
        value = loss(dual := forward_ad.make_dual(anchors.clone().requires_grad_(), tangent))
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(value, dual)
    # The result is linear in the tangent, so it has a derivative with respect to it.
    along = torch.func.grad(lambda t: torch.func.jvp(loss, (anchors,), (t,))[1])(tangent)
    torch.testing.assert_close(along, torch.func.grad(loss)(anchors))


@pytest.mark.parametrize("which", [1, 2])
def test_tangents_of_constants_are_refused(rows, which):
    def loss(constant):
        given = list(rows)
        given[which] = constant
        return cac_ext.masked_contrastive_loss(*given).sum()

    with pytest.raises(RuntimeError, match="constants of the loss"):
        torch.func.jvp(loss, (rows[which],), (torch.ones_like(rows[which]),))
