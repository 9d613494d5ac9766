"""The CUDA kernels at the ends of their ranges: lengths, temperatures, counts, raw vectors.

Compared with float64 results for the rounded elements, so that only the rounding of sums and of
probabilities remains and the bounds are tight.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cuda_emulation import ARITHMETICS, Call, Emulator, Outcome
from cuda_emulation.builds import build, compiler
from cuda_emulation.cases import FEATURE_DTYPES, make_call
from cuda_emulation.exact import exact

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

#: A logit is a sum of products of these elements in float32, cut off towards zero.
LOGIT_ERROR = 2.0**-19

#: Half a unit in the last place of a probability, and half as much for all other errors.
PROBABILITY_ERROR = {
    a: 1.5 * 2.0**-b for a, b in (("bf16", 8), ("fp16", 11), ("tf32", 11), ("fp32", 20))
}


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(build())


def assert_close(call: Call, outcome: Outcome) -> tuple[float, float]:
    """Asserts the bounds of each value and gradient; returns the largest fractions of them used."""
    truth = exact(call, rounded=True)
    # Error of a sum's logarithm: that of its logits, and of 1 / tau if it is the shift.
    size = truth.logit_size.clamp(min=1.0) if call.normalize else truth.logit_size
    logit = (LOGIT_ERROR * size + truth.logit_doubt) / call.temperature  # [A]
    if call.features2 is not None and call.eps == 0:
        # log(1 + sum / r): its relative error stays small for any small sum / r.
        allowed = logit * -torch.expm1(-truth.values) + 2.0**-22 * truth.values + 1e-43
    else:
        allowed = logit + 2.0**-20 * truth.values.abs().clamp(min=1.0)
    same = torch.where(truth.values.isfinite(), 0.0, truth.values).float()
    assert torch.equal(torch.where(outcome.values.isfinite(), 0.0, outcome.values), same)
    finite = truth.values.isfinite() & (call.direction != 0)
    assert (outcome.values[call.direction == 0] == 0).all()
    used = ((outcome.values.double() - truth.values).abs() / allowed)[finite]
    value_fraction = used.max().item() if finite.any() else 0.0
    gradient_fraction = 0.0
    assert value_fraction <= 1, f"values: {value_fraction:.2f} of the bound"
    if call.with_gradient and truth.gradients.numel():
        assert outcome.gradients.isfinite().all()
        error = (outcome.gradients.double() - truth.gradients).norm(dim=1)
        # Errors of a weight and of the mean.
        allowed = (2 * logit + PROBABILITY_ERROR[call.arithmetic]) * truth.gradient_size
        # The smallest weight or gradient that float32 holds; with eps the weight is p / eps^2.
        smallest = 1e-44 / call.eps**2 if call.eps > 0 else 1e-44
        scale = 1 / truth.lengths.clamp(min=1e-12) if call.normalize else 5.0
        allowed += smallest / call.temperature * scale + 1e-43
        gradient_fraction = (error / allowed).max().item()
        assert gradient_fraction <= 1, f"gradients: {gradient_fraction:.2f} of the bound"
    return value_fraction, gradient_fraction


def check(emulator: Emulator, *calls: Call) -> None:
    for call, outcome in zip(calls, emulator.run(calls), strict=True):
        assert_close(call, outcome)


def lengthen(x: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    x = x.double()
    return (x / x.norm(dim=1, keepdim=True) * lengths[:, None]).to(dtype)


def random_call(generator: torch.Generator) -> Call:
    def choose(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def power(low: float, high: float, *shape: int) -> torch.Tensor:
        return 10 ** (low + (high - low) * torch.rand(shape, generator=generator).double())

    arithmetic = choose(*ARITHMETICS)
    dtype = choose(*FEATURE_DTYPES[arithmetic])
    normalize = choose(True, True, False)
    anchors, negatives = choose(1, 30, 70, 140), choose(0, 1, 40, 64, 150, 200)
    call = make_call(
        choose(*range(1000)),
        anchors,
        negatives,
        choose(1, 5, 24, 64, 100, 130, 300),
        arithmetic,
        dtype=torch.float32,
        classes=choose(1, 2, 4),
        logsumexp=choose(True, False, False, False),
        temperature=power(-3, 1).item(),
        eps=choose(0.0, 0.0, 1e-8, 1e-3),
        with_gradient=choose(True, True, True, False),
        max_workers=choose(0, 0, 3),
    )
    call.normalize = normalize
    call.shared_kib = choose(0, 227)
    # Any lengths that the type holds; lengths of raw vectors enter the logits.
    ends = (-1, 0.7) if not normalize else (-3, 3) if dtype == torch.float16 else (-30, 20)
    call.features1 = lengthen(call.features1, power(*ends, anchors), dtype)
    if call.features2 is not None:
        call.features2 = lengthen(call.features2, power(*ends, anchors), dtype)
    call.negatives = lengthen(call.negatives, power(*ends, negatives), dtype)
    if choose(True, False):
        call.valid = torch.rand(negatives, generator=generator) < choose(0.0, 0.5, 0.9)
    return call


@pytest.mark.parametrize("part", range(4))
def test_any_call(seed, emulator, part):
    generator = torch.Generator().manual_seed(seed)
    calls = [random_call(generator) for _ in range(12)]
    for number, (call, outcome) in enumerate(zip(calls, emulator.run(calls), strict=True)):
        print(
            f"call {number}: {call.arithmetic} {call.features1.dtype} {list(call.features1.shape)} "
            f"N={len(call.negatives)} tau={call.temperature:.2g} eps={call.eps} "
            f"normalize={call.normalize} valid={call.valid is not None}"
        )
        print("fractions of the bounds: {:.2f} {:.2f}".format(*assert_close(call, outcome)))


@pytest.mark.parametrize("exponent", [-30, -11, -6, 6, 20, 30])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_vectors_of_any_length_have_their_direction(seed, emulator, arithmetic, exponent):
    call = make_call(seed, 40, 80, 24, arithmetic, dtype=torch.float32)
    call.direction.fill_(1)
    calls = []
    for name in ("features1", "features2", "negatives"):
        scaled = dataclasses.replace(call)
        setattr(scaled, name, getattr(call, name) * 10.0**exponent)
        calls.append(scaled)
    outcomes = emulator.run(calls)
    for scaled, outcome in zip(calls, outcomes, strict=True):
        assert_close(scaled, outcome)
    if exponent > -12:
        # The exact outcome does not depend on the length either.
        (unscaled,) = emulator.run([call])
        for outcome in outcomes:
            assert torch.allclose(outcome.values, unscaled.values, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_the_longest_and_the_shortest_vectors_of_float32(seed, emulator, arithmetic):
    call = make_call(seed, 40, 60, 24, arithmetic, dtype=torch.float32)
    for name in ("features1", "features2", "negatives"):
        x = getattr(call, name)
        x[0::4] *= torch.finfo(torch.float32).max / x[0::4].abs().amax(dim=1, keepdim=True)
        x[1::4] *= 1e-44
        x[2::4, 1:] = 0.0
        x[2::4, 0] = -torch.finfo(torch.float32).max
    check(emulator, call)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_vector_without_direction_has_the_gradient_zero(seed, emulator, arithmetic):
    for dtype in FEATURE_DTYPES[arithmetic]:
        for options in ({}, {"logsumexp": True}, {"eps": 1e-3}, {"temperature": 0.01}):
            call = make_call(seed, 40, 70, 24, arithmetic, dtype=dtype, **options)
            call.direction.fill_(1)
            short = torch.arange(40) % 3 == 0
            call.features1[short] = 0.0
            call.features1[0, 0] = 1e-13
            if call.features2 is not None:
                call.features2[20:30] = 0.0
            call.negatives[10:20] = 0.0
            (outcome,) = emulator.run([call])
            assert_close(call, outcome)
            assert (outcome.gradients[short] == 0).all()
            assert (outcome.gradients[~short].abs().sum(dim=1) > 0).any()


def test_gradients_keep_what_float16_features_could_not_hold(seed, emulator):
    call = make_call(seed, 40, 70, 24, "fp16", dtype=torch.float16)
    call.direction.fill_(1)
    call.features2 = -call.features2
    call.features1 = lengthen(call.features1, torch.full((40,), 1e-5), torch.float16)
    (outcome,) = emulator.run([call])
    assert_close(call, outcome)
    assert outcome.gradients.abs().max() > torch.finfo(torch.float16).max


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("size", [1e1, 1e3, 1e6, 1e15])
@pytest.mark.parametrize("arithmetic", ["bf16", "tf32", "fp32"])
def test_raw_vectors_of_any_size(seed, emulator, arithmetic, size, eps):
    call = make_call(
        seed, 40, 140, 24, arithmetic, dtype=torch.float32, normalize=False, eps=eps, max_workers=3
    )
    call.features1, call.features2 = call.features1 * size, call.features2 * size
    call.negatives = call.negatives * size
    # One negative alone decides, wherever it is.
    check(emulator, call, dataclasses.replace(call, features2=None, eps=0.0))


def test_raw_scores_that_fall_and_rise(seed, emulator):
    # Each score is larger or smaller than all before, by more than the range of exp in float32.
    for arithmetic in ARITHMETICS:
        for order in (1, -1):
            for channels in (8, 264):
                call = make_call(
                    seed, 40, 260, channels, arithmetic, dtype=torch.float32, normalize=False
                )
                call.features1 = torch.zeros(40, channels)
                call.features1[:, -1] = torch.linspace(-2, 2, 40)
                call.features2 = call.features1.clone()
                call.negatives = torch.zeros(260, channels)
                call.negatives[:, -1] = order * torch.linspace(-100, 100, 260)
                call.negative_labels.zero_()
                check(emulator, call)


@pytest.mark.parametrize("temperature", [1e-3, 3e-3, 0.02, 0.03, 0.099, 0.5, 10.0])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_temperatures(seed, emulator, arithmetic, temperature):
    calls = [
        make_call(seed, 40, 90, 24, arithmetic, temperature=temperature, **options)
        for options in ({}, {"logsumexp": True}, {"eps": 1e-8})
    ]
    # The positive is the anchor itself and opposite to every negative: the sum vanishes.
    alone = make_call(seed, 40, 90, 24, arithmetic, temperature=temperature)
    alone.features2 = alone.features1.clone()
    alone.negatives = -alone.features1[:1].repeat(90, 1)
    check(emulator, *calls, alone)


@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 130, 299, 300])
def test_rows_beyond_the_valid_ones_are_as_if_not_there(seed, emulator, arithmetic, count):
    calls = []
    for options in ({}, {"eps": 1e-3}, {"logsumexp": True}, {"temperature": 0.01}):
        call = make_call(seed, 150, 300, 24, arithmetic, max_workers=3, **options)
        generator = torch.Generator().manual_seed(seed)
        call.valid = torch.randperm(300, generator=generator) < count
        call.negatives[~call.valid] = torch.nan
        calls.append(call)
    check(emulator, *calls)


def test_work_for_invalid_rows_is_skipped(seed, emulator):
    for eps in (0.0, 1e-3):
        few = make_call(seed, 200, 100, 24, eps=eps)
        many = make_call(seed, 200, 100, 24, eps=eps)
        many.negatives = torch.cat([few.negatives, torch.full((900, 24), torch.nan).bfloat16()])
        many.negative_labels = torch.cat([few.negative_labels, torch.zeros(900, dtype=torch.long)])
        many.valid = torch.arange(1000) < 100
        first, second = emulator.run([few, many])
        assert first.matrix_products == second.matrix_products > 0
        assert torch.equal(first.values, second.values)
        assert torch.equal(first.gradients, second.gradients)


def test_no_anchor_no_negative_no_valid_row(seed, emulator):
    calls = []
    for normalize in (True, False):
        for options in ({}, {"eps": 1e-3}, {"logsumexp": True}, {"with_gradient": False}):
            options = {**options, "normalize": normalize}
            calls.append(make_call(seed, 0, 30, 8, **options))
            calls.append(make_call(seed, 30, 0, 8, **options))
            none = make_call(seed, 30, 40, 8, **options)
            none.valid = torch.zeros(40, dtype=torch.bool)
            calls.append(none)
            one_class = make_call(seed, 30, 40, 8, **options)
            one_class.anchor_labels.zero_()
            one_class.negative_labels.zero_()
            calls.append(one_class)
    check(emulator, *calls)
