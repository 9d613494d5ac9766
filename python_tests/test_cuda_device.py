"""Promises that need a GPU: streams, devices, graphs, memory, 64-bit indexing, repeatability.

Tests with a ``device`` fixture check values and gradients on CUDA.
"""

from __future__ import annotations

import pytest
import torch
from family_cases import EVERY, check, options_of
from family_cases import make_case as make_family_case
from loss_cases import LossCase, make_case
from torch import Tensor

import cac_ext
from cac_ext import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def loss_and_gradients(case: LossCase, **options) -> tuple[Tensor, Tensor, Tensor]:
    features1 = case.features1.detach().clone().requires_grad_()
    features2 = case.features2.detach().clone().requires_grad_()
    loss = cac_ext.directional_contrastive_loss(
        features1, features2, *case.arguments()[2:], confidence_threshold=0.3, **options
    )
    loss.backward()
    return loss.detach(), features1.grad, features2.grad


def copy_into(target: LossCase, source: LossCase) -> None:
    for x, y in zip(target.arguments(), source.arguments(), strict=True):
        x.copy_(y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_repeatable(seed, dtype):
    case = make_case(seed, 3000, 20_000, 128, 21, dtype, "cuda")
    first = loss_and_gradients(case)
    for _ in range(5):
        for x, y in zip(first, loss_and_gradients(case), strict=True):
            assert torch.equal(x, y)


def test_no_host_synchronization(seed):
    case = make_case(seed, 500, 3000, 64, 5, torch.bfloat16, "cuda")
    loss_and_gradients(case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradients(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_cuda_graph_replays_forward_and_backward_on_new_data(seed, eps):
    case, other = (make_case(seed + i, 700, 3000, 64, 5, torch.bfloat16, "cuda") for i in (0, 1))
    static = make_case(seed, 700, 3000, 64, 5, torch.bfloat16, "cuda")
    static.features1.requires_grad_()
    static.features2.requires_grad_()

    def step() -> Tensor:
        loss = cac_ext.directional_contrastive_loss(
            *static.arguments(), confidence_threshold=0.3, eps=eps
        )
        loss.backward()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            static.features1.grad = static.features2.grad = None
            step()
    torch.cuda.current_stream().wait_stream(side)
    static.features1.grad = static.features2.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for data in (other, case):
        with torch.no_grad():
            copy_into(static, data)
        graph.replay()
        expected = loss_and_gradients(data, eps=eps)
        for x, y in zip(
            (loss, static.features1.grad, static.features2.grad), expected, strict=True
        ):
            assert torch.equal(x, y)


def test_a_side_stream_is_honored(seed):
    case = make_case(seed, 500, 3000, 64, 5, torch.float32, "cuda")
    expected = loss_and_gradients(case)
    late = LossCase(*(torch.zeros_like(x) for x in case.arguments()))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # A launch on another stream would read the data long before they arrive.
        torch.cuda._sleep(50_000_000)
        copy_into(late, case)
        result = loss_and_gradients(late)
    side.synchronize()
    for x, y in zip(expected, result, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("first", ["features1", "features2"])
def test_one_tensor_on_another_device_is_named(seed, first):
    case = make_case(seed, 40, 60, 16, 3, torch.float32, "cuda")
    setattr(case, first, getattr(case, first).detach().cpu())
    with pytest.raises(ValueError, match="must be on c"):
        cac_ext.directional_contrastive_loss(*case.arguments())


def test_float32_beyond_128_channels_at_the_highest_precision(seed):
    case = make_case(seed, 300, 500, 200, 5, torch.float32, "cuda")
    loss, _, _ = loss_and_gradients(case, reduction="mean")
    exact = reference.directional_contrastive_loss(
        *case.to_float64().arguments(), confidence_threshold=0.3, reduction="mean"
    )
    assert abs(loss.double() - exact) <= 2e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_a_second_gpu_is_honored(seed):
    case = make_case(seed, 500, 3000, 64, 5, torch.float32, "cuda:1")
    assert torch.cuda.current_device() == 0
    loss, gradient1, _ = loss_and_gradients(case)
    assert loss.device == gradient1.device == torch.device("cuda:1")
    on_cpu = LossCase(*(x.cpu() for x in case.arguments()))
    assert loss.item() == pytest.approx(loss_and_gradients(on_cpu)[0].item(), rel=1e-4)


def test_memory_does_not_grow_with_anchors_times_negatives(seed):
    case = make_case(seed, 6400, 51_200, 128, 21, torch.bfloat16, "cuda")
    prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    features1 = case.features1.clone().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = cac_ext.directional_contrastive_loss(features1, *case.arguments()[1:6], prepared)
    outputs = torch.cuda.memory_allocated() - before
    extra = torch.cuda.max_memory_allocated() - before - outputs
    assert loss.isfinite()
    assert extra <= 2 * prepared.nbytes


@pytest.mark.slow
def test_more_than_2_31_elements(seed):
    anchors, channels = 2**23 + 1000, 256
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    generator = torch.Generator("cuda").manual_seed(seed)
    features = torch.randn(
        anchors, channels, device="cuda", dtype=torch.bfloat16, generator=generator
    )
    negatives = torch.randn(512, channels, device="cuda", dtype=torch.bfloat16)
    labels = torch.arange(anchors, device="cuda") % 3
    negative_labels = torch.arange(512, device="cuda") % 3
    active = torch.zeros(anchors, dtype=torch.bool, device="cuda")
    active[-300:] = True
    features.requires_grad_()
    loss = cac_ext.masked_contrastive_loss(
        features, features.detach(), negatives, labels, negative_labels, active=active
    )
    loss.sum().backward()
    tail = features.detach()[-300:].double()
    expected = reference.masked_contrastive_loss(
        tail, tail, negatives.double(), labels[-300:], negative_labels
    )
    assert (loss[-300:].double() - expected).abs().max() < 0.04
    assert (loss[:-300] == 0).all()
    assert features.grad[-300:].abs().sum() > 0


@pytest.mark.parametrize(("precision", "allowed"), [("highest", 2e-5), ("high", 1e-2)])
def test_float32_follows_the_matmul_precision(seed, precision, allowed):
    case = make_case(seed, 500, 3000, 128, 5, torch.float32, "cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        loss = loss_and_gradients(case, reduction="mean")[0]
    finally:
        torch.set_float32_matmul_precision(before)
    exact = reference.directional_contrastive_loss(
        *case.to_float64().arguments(), confidence_threshold=0.3, reduction="mean"
    )
    assert abs(loss.double() - exact) <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_nan_reaches_only_the_losses_of_other_classes(seed, precision, dtype):
    case = make_case(seed, 200, 300, 64, 3, dtype, "cuda")
    features, negatives = case.features1.detach(), case.negatives.detach().clone()
    labels, negative_labels = case.pseudo_labels1, torch.arange(300, device="cuda") % 3
    negatives[64, 5] = torch.nan  # of class 1
    features = features.clone().requires_grad_()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        losses = cac_ext.masked_contrastive_loss(
            features, case.features2.detach(), negatives, labels, negative_labels
        )
        losses.sum().backward()
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(losses.isnan(), labels != 1)
    assert torch.equal(features.grad.isfinite().all(dim=1), labels == 1)


@pytest.mark.parametrize(("make_loss", "kind"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_the_family_of_losses_equals_the_oracle(seed, dtype, make_loss, kind):
    for channels in (37, 200, 384, 1024, 1030):  # the last one by plain ATen
        case = make_family_case(seed, 300, 700, channels, 5, dtype, "cuda")
        for options in options_of(case):
            check(make_loss, kind, case, 0.1, **options)


def test_the_family_of_losses_does_not_wait_for_the_gpu(seed):
    case = make_family_case(seed, 300, 700, 64, 5, torch.bfloat16, "cuda")
    leaves = [x.clone().requires_grad_() for x in (case.anchors, case.positives, case.keys)]
    temperature = torch.tensor(0.1, device="cuda", requires_grad=True)
    filled = torch.tensor(600, device="cuda")

    def step() -> None:
        anchors, positives, keys = leaves
        labels = case.anchor_labels, case.key_labels
        options = {"temperature": temperature, "exclude": case.exclude, "num_valid": filled}
        total = cac_ext.masked_contrastive_loss(anchors, positives, keys, *labels, **options).sum()
        for form in ("supcon", "pairwise"):
            loss = cac_ext.supervised_contrastive_loss(anchors, keys, *labels, form=form, **options)
            total = total + loss.sum()
        total.backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
