"""Every wrong argument is named, with what came and what was needed."""

from __future__ import annotations

import pytest
import torch
from loss_cases import make_case

import cac_ext


def call(device="cpu", options=None, **changes):
    case = make_case(0, 20, 30, 8, 3, device=device)
    for name, change in changes.items():
        setattr(case, name, change(getattr(case, name)))
    return cac_ext.directional_contrastive_loss(*case.arguments(), **(options or {}))


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("features1", lambda x: x[0], ValueError, r"features1 must have shape .*\[8\]"),
        (
            "features2",
            lambda x: x[:5],
            ValueError,
            r"features2 must have shape \[20, 8\].*\[5, 8\]",
        ),
        ("features2", lambda x: x[:, :5], ValueError, r"features2 must have shape \[20, 8\]"),
        ("features2", lambda x: x.half(), TypeError, r"features2 must be Float like features1"),
        ("features1", lambda x: x.long(), TypeError, r"features1 must be float32.*Long"),
        (
            "confidences1",
            lambda x: x[:7],
            ValueError,
            r"confidences1 must have shape \[20\].*\[7\]",
        ),
        ("confidences2", lambda x: x.long(), TypeError, r"confidences2 must be floating"),
        ("pseudo_labels1", lambda x: x[:3], ValueError, r"pseudo_labels1 .*\[20\].*\[3\]"),
        ("pseudo_labels2", lambda x: x.float(), TypeError, r"pseudo_labels2 must be integers"),
        ("pseudo_labels2", lambda x: x.bool(), TypeError, r"pseudo_labels2 must be integers"),
        ("negatives", lambda x: x[:, :5], ValueError, r"negatives.*8 channels"),
        ("negatives", lambda x: x.double(), TypeError, r"negatives.*float64 together"),
        ("negative_labels", lambda x: x[:9], ValueError, r"negative_labels .*\[30\].*\[9\]"),
        ("negative_labels", lambda _: None, ValueError, r"negative_labels are missing"),
    ],
)
def test_wrong_tensors(name, change, error, message):
    with pytest.raises(error, match=message):
        call(**{name: change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number above 0, but got 0"),
        ({"temperature": -1.0}, "temperature .* -1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"eps": -1e-8}, "eps"),
        ({"reduction": "median"}, "reduction must be 'active_mean'.*'median'"),
        ({"weights": torch.ones(3)}, r"weights must have shape \[20\].*\[3\]"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        call(options=options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["features1", "features2", "negatives"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_named_with_their_place(name, value, dtype):
    case = make_case(0, 20, 30, 8, 3, dtype)
    getattr(case, name)[13, 5] = value
    getattr(case, name)[17, 1] = value
    with pytest.raises(ValueError, match=rf"{name} must be finite, but {name}\[13, 5\] is"):
        cac_ext.directional_contrastive_loss(*case.arguments())


def test_large_finite_values_are_legal():
    case = make_case(0, 20, 30, 8, 3)
    expected = cac_ext.directional_contrastive_loss(*case.arguments())
    case.features1 *= 1e15
    torch.testing.assert_close(cac_ext.directional_contrastive_loss(*case.arguments()), expected)


def test_gradients_of_constants_are_refused():
    case = make_case(0, 20, 30, 8, 3)
    case.negatives.requires_grad_()
    with pytest.raises(RuntimeError, match=r"negatives require a gradient.*detach"):
        cac_ext.directional_contrastive_loss(*case.arguments())
    with pytest.raises(RuntimeError, match=r"positives require a gradient.*detach"):
        cac_ext.masked_contrastive_loss(
            case.features1, case.features2.requires_grad_(), case.negatives.detach(),
            case.pseudo_labels1, case.negative_labels,
        )  # fmt: skip
    with torch.no_grad():
        cac_ext.directional_contrastive_loss(*case.arguments())


def test_prepared_negatives_carry_their_labels():
    case = make_case(0, 20, 30, 8, 3)
    prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    with pytest.raises(ValueError, match="negative_labels must be left out"):
        cac_ext.directional_contrastive_loss(*case.arguments()[:6], prepared, case.negative_labels)


def test_an_unknown_capability_lists_those_there_are():
    with pytest.raises(ValueError, match="portable"):
        cac_ext._C.limit_cpu_capability("mmx")
