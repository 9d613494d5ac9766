"""What counts and what does not: exclusions, partly filled queues, empty sides, prepared keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_cases import make_case

import cac_ext


def gradients(function, *rows):
    leaves = [x.clone().requires_grad_() for x in rows]
    value = function(*leaves)
    value.nan_to_num(neginf=0.0).sum().backward()
    return value.detach(), *(x.grad for x in leaves)


@pytest.mark.parametrize("mask", ["different", "same", "all"])
def test_an_excluded_negative_is_as_if_it_were_not_there(seed, mask):
    case = make_case(seed, 30, 60, 8, 3, torch.float64)
    # All anchors exclude the same one, so that it can be taken away for all of them.
    row = seed % 60
    exclude = torch.full((30,), row)
    others = torch.arange(60) != row

    def with_exclude(anchors, keys):
        return cac_ext.masked_logsumexp(
            anchors, keys, case.anchor_labels, case.key_labels, mask=mask, exclude=exclude
        )

    def without(anchors, keys):
        return cac_ext.masked_logsumexp(
            anchors, keys[others], case.anchor_labels, case.key_labels[others], mask=mask
        )

    ours = gradients(with_exclude, case.anchors, case.keys)
    for x, y in zip(ours, gradients(without, case.anchors, case.keys), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
    assert (ours[2][row] == 0).all()


def test_a_dominating_excluded_negative_leaves_no_trace(seed):
    # Its exponential is 10^17 times the others', so that a subtraction would leave nothing.
    anchors = torch.nn.functional.one_hot(torch.arange(6), 8).float()
    keys = torch.cat([anchors, -anchors])
    own = torch.arange(6)
    loss = cac_ext.masked_logsumexp(anchors, keys, mask="all", temperature=0.05, exclude=own)
    exact = torch.log(torch.tensor(10.0) + torch.exp(torch.tensor(-20.0)))
    torch.testing.assert_close(loss, exact.expand(6), rtol=1e-6, atol=0)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_a_queue_does_not_hold_yet_may_be_anything(seed, as_tensor):
    case = make_case(seed, 30, 60, 8, 3)
    spoilt = case.keys.clone()
    spoilt[41:] = torch.nan
    num_valid = torch.tensor(41) if as_tensor else 41
    functions = {
        mask: lambda anchors, keys, labels, mask=mask, **options: cac_ext.masked_logsumexp(
            anchors, keys, case.anchor_labels, labels, mask=mask, **options
        )
        for mask in ("different", "same", "all")
    } | {
        form: lambda anchors, keys, labels, form=form, **options: (
            cac_ext.supervised_contrastive_loss(
                anchors, keys, case.anchor_labels, labels, form=form, **options
            )
        )
        for form in ("supcon", "pairwise")
    }
    for function in functions.values():
        part = gradients(
            lambda a, k, f=function: f(a, k, case.key_labels, num_valid=num_valid),
            case.anchors, spoilt,
        )  # fmt: skip
        whole = gradients(
            lambda a, k, f=function: f(a, k, case.key_labels[:41]), case.anchors, case.keys[:41]
        )
        torch.testing.assert_close(part[0], whole[0])
        torch.testing.assert_close(part[1], whole[1])
        torch.testing.assert_close(part[2][:41], whole[2])
        assert (part[2][41:] == 0).all()
    prepared = cac_ext.prepare_negatives(spoilt, case.key_labels, num_valid=num_valid)
    torch.testing.assert_close(
        cac_ext.masked_logsumexp(case.anchors, prepared, case.anchor_labels),
        cac_ext.masked_logsumexp(
            case.anchors, case.keys[:41], case.anchor_labels, case.key_labels[:41]
        ),
    )


def test_prepared_negatives_serve_every_mask(seed):
    case = make_case(seed, 30, 60, 8, 3)
    prepared = cac_ext.prepare_negatives(case.keys, case.key_labels)
    for mask in ("different", "same", "all"):
        ours = cac_ext.masked_logsumexp(case.anchors, prepared, case.anchor_labels, mask=mask)
        expected = cac_ext.masked_logsumexp(
            case.anchors, case.keys, case.anchor_labels, case.key_labels, mask=mask
        )
        assert torch.equal(ours, expected)


def test_anchors_without_positives_have_no_loss_and_no_gradient(seed):
    case = make_case(seed, 30, 60, 8, 3, torch.float64)
    labels = case.anchor_labels.clone()
    labels[::3] = 77
    for form in ("supcon", "pairwise"):
        loss, grad, _ = gradients(
            lambda a, k, f=form: cac_ext.supervised_contrastive_loss(
                a, k, labels, case.key_labels, form=f
            ),
            case.anchors, case.keys,
        )  # fmt: skip
        assert (loss[::3] == 0).all()
        assert (grad[::3] == 0).all()
        assert (loss[labels != 77] > 0).all()


def test_anchors_without_weight_cost_the_keys_nothing(seed):
    # An infinite upstream gradient of an inactive anchor must not reach the keys as nan.
    case = make_case(seed, 30, 60, 8, 3)
    keys = case.keys.clone().requires_grad_()
    loss = cac_ext.masked_contrastive_loss(
        case.anchors, case.positives, keys, case.anchor_labels, case.key_labels, active=case.active
    )
    (loss * torch.where(case.active, 1.0, torch.inf)).nan_to_num(0.0).sum()
    loss.backward(torch.where(case.active, 1.0, torch.inf))
    assert keys.grad.isfinite().all()


def test_upstream_gradients_of_any_size(seed):
    case = make_case(seed, 30, 60, 8, 3)
    results = []
    for scale in (1.0, 2.0**-90, 2.0**-110, 2.0**120):
        keys = case.keys.clone().requires_grad_()
        loss = cac_ext.masked_logsumexp(case.anchors, keys, mask="all")
        loss.backward(scale * case.upstream.float())
        results.append(keys.grad / scale)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_many_labels_of_two(seed):
    # As in SupCon with two views of each image: every class holds two keys.
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, 16, generator=generator, dtype=torch.float64)
    labels = torch.arange(150).repeat(2)
    own = torch.arange(300)
    for form in ("supcon", "pairwise"):
        options = {"form": form, "exclude": own}
        torch.testing.assert_close(
            cac_ext.supervised_contrastive_loss(rows, rows, labels, labels, **options),
            cac_ext.reference.supervised_contrastive_loss(rows, rows, labels, labels, **options),
            rtol=1e-12, atol=1e-12,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": "other"}, ValueError, "mask must be 'different', 'same', 'all', but got 'other'"),
        ({"exclude": torch.zeros(4).long()}, ValueError, r"exclude must have"),
        ({"exclude": torch.zeros(30)}, TypeError, "exclude must be int64"),
        ({"exclude": torch.full((30,), 60)}, ValueError, r"row of the 60 negatives.*is 60"),
        ({"num_valid": 61}, ValueError, "num_valid must be within 0 and 60"),
        ({"num_valid": 3.0}, TypeError, "num_valid must be an integer"),
        ({"num_valid": torch.tensor(3.0)}, TypeError, "num_valid must be an integer"),
        ({"temperature": torch.ones(2, requires_grad=True)}, TypeError, "temperature must be"),
        ({"temperature": torch.tensor(-1.0, requires_grad=True)}, ValueError, "temperature must"),
        ({"anchor_labels": None}, ValueError, "anchor_labels are missing"),
        ({"negative_labels": None}, ValueError, "negative_labels are missing"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    case = make_case(0, 30, 60, 8, 3)
    given = {"anchor_labels": case.anchor_labels, "negative_labels": case.key_labels, **options}
    with pytest.raises(error, match=message):
        cac_ext.masked_contrastive_loss(case.anchors, case.positives, case.keys, **given)


def test_wrong_arguments_of_the_supervised_loss_are_named():
    case = make_case(0, 30, 60, 8, 3)
    labels = case.anchor_labels, case.key_labels
    with pytest.raises(ValueError, match="form must be 'supcon' or 'pairwise', but got 'none'"):
        cac_ext.supervised_contrastive_loss(case.anchors, case.keys, *labels, form="none")
    with pytest.raises(TypeError, match="key_labels must be a"):
        cac_ext.supervised_contrastive_loss(case.anchors, case.keys, labels[0], None)
    prepared = cac_ext.prepare_negatives(case.keys, case.key_labels)
    with pytest.raises(ValueError, match="exclude numbers the negatives as given"):
        cac_ext.masked_logsumexp(case.anchors, prepared, labels[0], exclude=case.exclude)


def test_memory_does_not_grow_with_the_number_of_pairs():
    # A child, because the peak of this process may be anywhere. The matrix would take 400 MB.
    program = """
import torch, cac_ext
from benchmarks.measure.memory_probe import PeakGrowth
rows = torch.randn(10_000, 16, requires_grad=True)
labels = torch.arange(10_000) % 7
own = torch.arange(10_000)
small = rows[:100]
cac_ext.supervised_contrastive_loss(small, small, labels[:100], labels[:100]).sum().backward()
for form in ("supcon", "pairwise"):
    growth = PeakGrowth()
    loss = cac_ext.supervised_contrastive_loss(rows, rows, labels, labels, form=form, exclude=own)
    loss.sum().backward()
    print(growth.bytes() / rows.nbytes)
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    for line in done.stdout.split():
        assert float(line) < 40, "times the bytes of the features"
