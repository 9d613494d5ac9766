"""Value and gradient equal the paper's equations, computed eagerly in float64."""

from __future__ import annotations

import pytest
import torch
from loss_cases import SHAPES, LossCase, make_case
from torch import Tensor

import cac_ext
from cac_ext import _C, reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
#: Error allowed beside the eager computation's own in the same type, and its multiple allowed.
ABSOLUTE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-3,
}
NO_WORSE_THAN_EAGER = 2.0
NAMES = ("loss", "gradient 1", "gradient 2")


@pytest.fixture(params=_C.cpu_capabilities())
def capability(request: pytest.FixtureRequest):
    """Each instruction set that this processor and build have, in turn."""
    before = _C.cpu_capability()
    _C.limit_cpu_capability(request.param)
    yield request.param
    _C.limit_cpu_capability(before)


def gradients(function, case: LossCase, **options) -> tuple[Tensor, Tensor, Tensor]:
    """``reduction="none"`` loss and the gradients of a weighted sum of it, all as float64."""
    features1 = case.features1.clone().requires_grad_()
    features2 = case.features2.clone().requires_grad_()
    loss = function(features1, features2, *case.arguments()[2:], reduction="none", **options)
    scale = torch.linspace(0.5, 1.5, loss.numel()).reshape(loss.shape).to(loss)
    (loss * scale).sum().backward()
    return loss.detach().double(), features1.grad.double(), features2.grad.double()


def assert_no_worse_than_eager(case: LossCase, **options) -> None:
    ours = gradients(cac_ext.directional_contrastive_loss, case, **options)
    eager = gradients(reference.directional_contrastive_loss, case, **options)
    oracle = gradients(reference.directional_contrastive_loss, case.to_float64(), **options)
    dtype = case.features1.dtype
    for name, x, y, z in zip(NAMES, ours, eager, oracle, strict=True):
        if x.numel() == 0:
            continue
        allowed = ABSOLUTE[dtype] * max(1.0, z.abs().max().item())
        allowed += NO_WORSE_THAN_EAGER * (y - z).abs().max().item()
        error = (x - z).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.2e} > {allowed:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_type(seed, device, shape, dtype):
    case = make_case(seed, *shape, dtype, device)
    assert_no_worse_than_eager(case, confidence_threshold=0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.02])
@pytest.mark.parametrize("shape", [(130, 517, 37, 7), (201, 1500, 128, 5)], ids=str)
def test_every_instruction_set(seed, capability, shape, temperature, dtype):
    case = make_case(seed, *shape, dtype)
    assert_no_worse_than_eager(case, temperature=temperature, confidence_threshold=0.3)


@pytest.mark.parametrize("temperature", [10.0, 0.5, 0.07, 0.026, 0.024, 0.01, 0.001])
def test_temperatures_on_both_sides_of_the_bounded_shift(seed, device, temperature):
    case = make_case(seed, 60, 400, 24, 4, torch.float64, device)
    assert_no_worse_than_eager(case, temperature=temperature, confidence_threshold=0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(60, 400, 24, 4), (20, 9000, 8, 2), (30, 50, 16, 1)], ids=str)
def test_eps_of_the_authors_code(seed, device, shape, dtype):
    case = make_case(seed, *shape, dtype, device)
    assert_no_worse_than_eager(case, eps=1e-8, confidence_threshold=0.2)


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
    expected = gradients(cac_ext.directional_contrastive_loss, case, confidence_threshold=0.2)
    for name, value in vars(case).items():
        if value.dim() == 2:  # channels strided, as in a feature map [C, H W]
            setattr(case, name, value.T.contiguous().T)
        else:
            setattr(case, name, torch.stack([value, value], dim=1)[:, 0])
    strided = gradients(cac_ext.directional_contrastive_loss, case, confidence_threshold=0.2)
    for x, y in zip(strided, expected, strict=True):
        assert torch.equal(x, y)


def test_rows_with_a_stride_are_read_in_place(seed):
    case = make_case(seed, 70, 300, 16, 5)
    wide = torch.cat([case.features1, case.features1], dim=1)
    loss = cac_ext.directional_contrastive_loss(*case.arguments())
    case.features1 = wide[:, :16]
    assert torch.equal(cac_ext.directional_contrastive_loss(*case.arguments()), loss)


@pytest.mark.parametrize("reduction", ["active_mean", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_and_weights(seed, device, reduction, weighted):
    case = make_case(seed, 90, 300, 16, 5, torch.float64, device)
    weights = torch.rand(90, dtype=torch.float64).to(device) if weighted else None
    options = {"reduction": reduction, "weights": weights, "confidence_threshold": 0.2}
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), **options)
    oracle = reference.directional_contrastive_loss(*case.arguments(), **options)
    torch.testing.assert_close(loss, oracle)


def test_the_papers_normaliser_is_a_weighted_sum(seed, device):
    # 1 / (B N_b) for a pixel of image b: the mean over each image's pixels, then over images.
    case = make_case(seed, 90, 300, 16, 5, torch.float64, device)
    image = torch.arange(90, device=device) // 30 % 2  # images of 60 and of 30 pixels
    per_pixel = cac_ext.directional_contrastive_loss(*case.arguments(), reduction="none").sum(0)
    expected = (per_pixel[image == 0].mean() + per_pixel[image == 1].mean()) / 2
    weights = 1 / (2 * torch.bincount(image).double())[image]
    loss = cac_ext.directional_contrastive_loss(*case.arguments(), weights=weights, reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_direction_and_its_logsumexp(seed, device, dtype):
    case = make_case(seed, 75, 410, 40, 6, dtype, device)
    exact = case.to_float64()
    active = case.confidences1 < 0.5

    def run(module, c: LossCase):
        anchors = c.features1.clone().requires_grad_()
        one = module.masked_contrastive_loss(
            anchors, c.features2, c.negatives, c.pseudo_labels1, c.negative_labels, active=active
        )
        lse = module.masked_logsumexp(anchors, c.negatives, c.pseudo_labels1, c.negative_labels)
        grads = [torch.autograd.grad(x.sum(), anchors)[0].double() for x in (one, lse)]
        return one.double(), lse.double(), *grads

    results = run(cac_ext, case), run(reference, case), run(reference, exact)
    for x, y, z in zip(*results, strict=True):
        allowed = ABSOLUTE[dtype] * max(1.0, z.abs().max().item())
        allowed += NO_WORSE_THAN_EAGER * (y - z).abs().max().item()
        assert (x - z).abs().max().item() <= allowed


def test_normalize_off_trusts_unit_vectors(seed, device):
    case = make_case(seed, 75, 410, 40, 6, torch.float64, device)
    unit = [
        torch.nn.functional.normalize(x, dim=1) if x.dim() == 2 else x for x in vars(case).values()
    ]
    ours = gradients(cac_ext.directional_contrastive_loss, LossCase(*unit), normalize=False)
    oracle = gradients(reference.directional_contrastive_loss, LossCase(*unit), normalize=False)
    for x, y in zip(ours, oracle, strict=True):
        torch.testing.assert_close(x, y)


def test_zero_vectors_behave_as_in_torch(device):
    anchors = torch.zeros(3, 4, dtype=torch.float64, device=device)
    anchors[1, 2] = 1e-13  # shorter than torch.nn.functional.normalize's limit
    others = torch.eye(4, dtype=torch.float64, device=device)[:3]
    labels = torch.zeros(3, dtype=torch.int64, device=device)

    def run(module):
        x = anchors.clone().requires_grad_()
        module.masked_contrastive_loss(x, others, others, labels, labels + 1).sum().backward()
        return x.grad

    torch.testing.assert_close(run(cac_ext), run(reference))


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
