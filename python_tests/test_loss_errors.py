"""Every wrong argument is named, with the given and the needed value."""

from __future__ import annotations

import numpy as np
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
    with pytest.raises(RuntimeError, match=r"negatives require a gradient.*detach"):
        cac_ext.prepare_negatives(case.negatives, case.negative_labels)
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features1", None, r"features1 must be a torch.Tensor, but got NoneType"),
        ("features2", [[1.0] * 8] * 20, r"features2 must be a torch.Tensor, but got list"),
        ("pseudo_labels1", [0] * 20, r"pseudo_labels1 must be a torch.Tensor, but got list"),
        ("confidences2", 0.5, r"confidences2 must be a torch.Tensor, but got float"),
        ("negatives", None, r"negatives must be a torch.Tensor, but got NoneType"),
        ("negatives", np.zeros((30, 8)), r"negatives must be a torch.Tensor, but got ndarray"),
        ("negative_labels", [0] * 30, r"negative_labels must be a torch.Tensor, but got list"),
        ("features1", torch.zeros(20, 8).to_sparse(), r"features1 must be a dense tensor"),
        ("features1", torch.zeros(20, 8, dtype=torch.complex64), r"features1 must be.*"),
        ("pseudo_labels1", torch.zeros(20, dtype=torch.uint16), r"pseudo_labels1 must be integers"),
        ("negative_labels", torch.zeros(30, dtype=torch.uint64), r"negative_labels must be int"),
    ],
)
def test_what_is_no_fitting_tensor_is_named(name, value, message):
    with pytest.raises(TypeError, match=message):
        call(**{name: lambda _: value})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": "0.1"}, TypeError, r"temperature must be a number, but got str '0.1'"),
        ({"temperature": True}, TypeError, "temperature must be a number, but got bool"),
        ({"temperature": None}, TypeError, "temperature must be a number, but got NoneType"),
        ({"temperature": torch.ones(2)}, TypeError, "temperature must be a number or a tensor of"),
        ({"eps": True}, TypeError, "eps must be a number, but got bool True"),
        ({"eps": float("inf")}, ValueError, "eps must be a finite number"),
        ({"confidence_threshold": float("nan")}, ValueError, "confidence_threshold must be a prob"),
        ({"confidence_threshold": 1.5}, ValueError, "within 0 and 1, but got 1.5"),
        ({"confidence_threshold": -0.1}, ValueError, "within 0 and 1, but got -0.1"),
        ({"normalize": 1}, TypeError, "normalize must be True or False, but got int 1"),
        ({"normalize": "no"}, TypeError, "normalize must be True or False"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index must be an integer label or None"),
        ({"ignore_index": True}, TypeError, "ignore_index must be an integer label or None"),
        ({"weights": [1.0] * 20}, TypeError, "weights must be a torch.Tensor, but got list"),
        ({"weights": torch.ones(20).long()}, TypeError, "weights must be floating point"),
        ({"weights": torch.ones(20).to("meta")}, ValueError, "weights must be on cpu"),
        ({"reduction": None}, ValueError, "reduction must be"),
    ],
)
def test_an_option_of_another_kind_is_named(options, error, message):
    with pytest.raises(error, match=message):
        call(options=options)


def test_numbers_of_other_libraries_are_numbers():
    expected = call(options={"temperature": 0.5, "eps": 1e-8})
    for one in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5)):
        assert torch.equal(call(options={"temperature": one, "eps": np.float64(1e-8)}), expected)
    assert call(options={"ignore_index": np.int64(255)}).isfinite()
    assert call(options={"confidence_threshold": 1}) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["confidences1", "confidences2"])
def test_a_confidence_that_is_not_finite_is_found(name, value):
    def spoil(x):
        x[7] = value
        return x

    with pytest.raises(ValueError, match=rf"{name} must be finite, but {name}\[7\] is"):
        call(**{name: spoil})


def test_the_odd_one_out_is_named():
    with pytest.raises(ValueError, match=r"features1 must have 8 channels like features2, neg"):
        call(features1=lambda x: x[:, :3])
    with pytest.raises(ValueError, match=r"features1 must have 20 rows like features2, confid"):
        call(features1=lambda x: x[:4])
    with pytest.raises(ValueError, match=r"features1 must have device cpu like features2"):
        call(features1=lambda x: x.to("meta"))
    with pytest.raises(ValueError, match=r"negatives must have 8 channels"):
        call(negatives=lambda x: x[:, :3])
