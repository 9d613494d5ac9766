"""Precisions "high" and "highest" of float32: within bounds that hold for any unit vectors.

The bound of "high", with u = 2^-24, half a unit of float32. Each factor is split into two bfloat16
numbers within 2^-17 of it and the product of the two lower parts, at most 2^-16, is left out; the
three products a channel are added in float32. A cosine of C channels is then off by at most

    delta = 2^-17 + 2^-17 + 2^-16 + 3 C u   (first order; |a| |n| = 1 bounds the sum of products)

and a logit by delta / tau. The sum over a block of 256 negatives adds 2^-17, exponentials 2^-21. In
the gradient, a mean of negatives over tau, weights are off by the logits' error, once themselves
and once in their sum, products by 2^-15 again and sums of N negatives by 3 N u.

Under "highest" a factor is exact, as float32 or as three bfloat16 numbers, whose products leave out
u at most; the five small products are added up before the large one. 1.1 C u bounds both ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from loss_cases import SHAPES, LossCase, make_case
from torch import Tensor

import cac_ext
from cac_ext import _C, reference

U = 2.0**-24
SPLIT = 2.0**-15
#: Second-order terms, and single roundings: unit vectors, the result.
SLACK = 1.02

HAS_AMX = "amx" in _C.cpu_capabilities()


def logit_error(channels: int, temperature: float) -> float:
    return SLACK * (SPLIT + 3 * channels * U + 4 * U) / temperature


def logsumexp_error(channels: int, temperature: float) -> float:
    return logit_error(channels, temperature) + 2.0**-17 + 2.0**-21


def mean_error(negatives: int, channels: int, temperature: float) -> float:
    """Error of the mean of the negatives, weighted by their probabilities."""
    weights = math.expm1(logit_error(channels, temperature) + 2.0**-21)
    return SLACK * (2 * weights + 2.0**-17 + SPLIT + 3 * negatives * U)


def highest_logit_error(channels: int, temperature: float) -> float:
    return SLACK * (1.1 * channels + 6) * U / temperature


@pytest.fixture
def precision() -> Iterator:
    """Sets the precision of float32 products until the test ends."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def high(precision) -> None:
    precision("high")


def unit_rows(generator: torch.Generator, rows: int, channels: int) -> Tensor:
    vectors = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1).float()


def gradients(function, case: LossCase, **options) -> tuple[Tensor, Tensor, Tensor]:
    """``reduction="none"`` loss [2, A] and the gradients of its sum [A, C], as float64."""
    features = [case.features1.clone().requires_grad_(), case.features2.clone().requires_grad_()]
    loss = function(*features, *case.arguments()[2:], reduction="none", **options)
    loss.sum().backward()
    return loss.detach().double(), *(x.grad.double() for x in features)


def logsumexp_errors(seed, negatives, channels, temperature) -> tuple[float, float, float]:
    """Largest errors of value and gradient [A, C] of unit anchors, and the largest value."""
    generator = torch.Generator().manual_seed(seed)
    bank = unit_rows(generator, negatives, channels)
    anchors = unit_rows(generator, 70, channels)
    anchors[:20] = bank[torch.arange(20) % negatives]  # cosine 1, as large as they come
    labels = torch.zeros(70, dtype=torch.int64), torch.ones(negatives, dtype=torch.int64)

    def run(module, anchors, bank):
        anchors = anchors.clone().requires_grad_()
        value = module.masked_logsumexp(
            anchors, bank, *labels, temperature=temperature, normalize=False
        )
        value.sum().backward()
        return value.detach().double(), anchors.grad.double()

    value, gradient = run(cac_ext, anchors, bank)
    exact_value, exact_gradient = run(reference, anchors.double(), bank.double())
    return (
        (value - exact_value).abs().max().item(),
        (gradient - exact_gradient).norm(dim=1).max().item(),
        exact_value.abs().max().item(),
    )


OF_UNIT_VECTORS = [(1, 1), (31, 7), (257, 128), (600, 100)]  # negatives, channels


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize(("negatives", "channels"), OF_UNIT_VECTORS)
def test_unit_vectors_stay_within_the_bound(seed, high, negatives, channels, temperature):
    value, gradient, largest = logsumexp_errors(seed, negatives, channels, temperature)
    assert value <= logsumexp_error(channels, temperature) + 2 * U * largest
    assert gradient <= mean_error(negatives, channels, temperature) / temperature


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize(("negatives", "channels"), OF_UNIT_VECTORS)
@pytest.mark.parametrize("capability", _C.cpu_capabilities())
def test_highest_is_float32_accurate_on_every_processor(
    seed, precision, capability, negatives, channels, temperature
):
    precision("highest")
    before = _C.cpu_capability()
    _C.limit_cpu_capability(capability)
    try:
        value, gradient, largest = logsumexp_errors(seed, negatives, channels, temperature)
    finally:
        _C.limit_cpu_capability(before)
    of_logit = highest_logit_error(channels, temperature)
    of_weights = math.expm1(of_logit + 2.0**-21)
    assert value <= of_logit + 2.0**-21 + 2 * U * (largest + 1)
    assert gradient <= SLACK * (2 * of_weights + (1.1 * negatives + 4) * U) / temperature


@pytest.mark.skipif(not HAS_AMX, reason="float32 is multiplied as such without AMX")
def test_some_vectors_come_close_to_the_bound(high):
    # 1 + 2^-8 - 2^-17 - 2^-23 loses as much as a number of its size can, twice: its lower part is
    # nearly half a unit of bfloat16, and lies nearly halfway between two such numbers itself.
    element = 1 + 2.0**-8 - 2.0**-17 - 2.0**-23
    vector = torch.full((1, 64), element / 8)
    label = torch.zeros(1, dtype=torch.int64)
    temperature = math.log2(math.e) / 16  # the anchor is scaled by a power of 2: it stays as it is
    value = cac_ext.masked_logsumexp(
        vector, vector, label, label + 1, temperature=temperature, normalize=False
    )
    error = element**2 - value.item() * temperature
    assert 0.9 * SPLIT < error < SPLIT + 3 * 64 * U


@pytest.mark.parametrize("temperature", [0.1, 0.02])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient_of_every_shape(seed, high, shape, eps, temperature):
    case = make_case(seed, *shape)
    options = {"temperature": temperature, "eps": eps, "confidence_threshold": 0.3}
    ours = gradients(cac_ext.directional_contrastive_loss, case, **options)
    exact = gradients(reference.directional_contrastive_loss, case.to_float64(), **options)
    pixels, negatives, channels, _ = shape
    if pixels == 0:
        return
    # The loss grows at most as fast as the logits. Its probability grows at most a quarter as fast
    # (with eps, a product of two such: half), and positive and mean are at most 2 apart.
    of_loss = logsumexp_error(channels, temperature)
    of_weights = of_loss / 2 if eps else of_loss / 4
    of_gradient = (mean_error(negatives, channels, temperature) + 2 * of_weights) / temperature
    assert (ours[0] - exact[0]).abs().max() <= of_loss + 4 * U * exact[0].abs().max()
    for x, y, features in zip(ours[1:], exact[1:], (case.features1, case.features2), strict=True):
        error = (x - y).norm(dim=1) * features.double().norm(dim=1)  # of the unit vector's
        assert error.max() <= of_gradient * (1 + 4 * U)


def test_float16_features_are_multiplied_as_float32_ones(seed, high):
    case = make_case(seed, 130, 517, 37, 7, torch.float16)
    options = {"confidence_threshold": 0.3, "reduction": "none"}
    wide = LossCase(*(x.float() if x.is_floating_point() else x for x in case.arguments()))
    narrow = cac_ext.directional_contrastive_loss(*case.arguments(), **options)
    exact = reference.directional_contrastive_loss(*wide.to_float64().arguments(), **options)
    assert (narrow.double() - exact).abs().max() <= logsumexp_error(37, 0.1) + 1e-5


@pytest.mark.parametrize("channels", [64, 37])
def test_prepared_float32_negatives_serve_every_precision(seed, precision, channels):
    """The precision counts that is set when the loss is computed."""
    case = make_case(seed, 130, 517, channels, 7)
    prepared, losses = {}, {}
    for name in ("highest", "high"):
        precision(name)
        prepared[name] = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
        assert prepared[name].dtype == torch.float32
        losses[name] = gradients(cac_ext.directional_contrastive_loss, case)
    parts = [prepared[name]._parts.features for name in ("highest", "high")]
    assert torch.equal(*parts)
    for name in ("highest", "high"):
        precision(name)
        for negatives in prepared.values():

            def loss(*arguments, negatives=negatives, **options):
                return cac_ext.directional_contrastive_loss(*arguments[:6], negatives, **options)

            for x, y in zip(gradients(loss, case), losses[name], strict=True):
                assert torch.equal(x, y)
    assert torch.equal(losses["highest"][0], losses["high"][0]) == (not HAS_AMX)


@pytest.mark.parametrize("capability", [x for x in _C.cpu_capabilities() if x != "amx"])
def test_without_amx_high_is_highest(seed, precision, capability):
    case = make_case(seed, 130, 517, 37, 7)
    before = _C.cpu_capability()
    _C.limit_cpu_capability(capability)
    try:
        results = []
        for name in ("highest", "high"):
            precision(name)
            results.append(gradients(cac_ext.directional_contrastive_loss, case))
    finally:
        _C.limit_cpu_capability(before)
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_bitwise_equal_from_run_to_run_and_for_any_number_of_threads(seed, high, temperature):
    case = make_case(seed, 900, 3000, 100, 9)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(
                gradients(
                    cac_ext.directional_contrastive_loss,
                    case,
                    temperature=temperature,
                    confidence_threshold=0.2,
                )
            )
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for x, y in zip(result, results[0], strict=True):
            assert torch.equal(x, y)
