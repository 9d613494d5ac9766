"""Nan and infinity reach the losses that they must reach, in every arithmetic, and no others.

The CUDA path checks no values, so a nan in the loss is a user's only sign. The device emulation
returns nan with the bits of a GPU, 0x7fffffff.
"""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import ARITHMETICS, Call, Emulator, Outcome
from cuda_emulation.builds import build, compiler
from cuda_emulation.cases import make_call
from cuda_emulation.exact import exact
from torch import Tensor

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

#: Quiet, a GPU's result, signaling, negative, x86's result.
NANS = [0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF, 0xFFC00000]

#: Options that select different kernels: bounded shift, running maximum, no gradient, row maximum.
OPTIONS = [
    {},
    {"temperature": 0.02},
    {"with_gradient": False},
    {"eps": 1e-3},
    {"logsumexp": True},
    {"normalize": False},
]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(build())


def nan_of(bits: int) -> Tensor:
    return torch.tensor([bits], dtype=torch.uint32).view(torch.float32)[0]


def all_active(
    seed: int,
    arithmetic: str,
    options: dict,
    dtype: torch.dtype | None = None,
    channels: int = 24,
) -> Call:
    """Three classes of negatives with borders inside units; all pixels are anchors."""
    call = make_call(seed, 60, 150, channels, arithmetic, classes=3, dtype=dtype, **options)
    call.direction = (1 + torch.arange(60) % 2).to(torch.int8)
    if call.features2 is None:
        call.direction.fill_(1)
    call.anchor_labels = torch.arange(60) % 3
    call.negative_labels = torch.arange(150) % 3
    return call


def assert_same_kinds(call: Call, outcome: Outcome, *, exactly: bool = True) -> None:
    """Values are finite, nan, inf or -inf as in the exact outcome, and gradients are finite where
    those are. ``exactly=False`` permits nan instead of an infinite value, and instead of a finite
    value if a logit is -inf."""
    truth = exact(call)
    finite = truth.values.isfinite()
    if exactly:
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(outcome.values), kind(truth.values)), kind.__name__
    assert not outcome.values[~finite].isfinite().any()
    if not call.with_gradient:
        return
    assert not outcome.gradients[~finite].isfinite().all(dim=1).any()
    # An anchor that meets a nonfinite negative with the probability 0 is not among these.
    untouched = truth.gradients.isfinite().all(dim=1)
    assert outcome.gradients[untouched].isfinite().all()
    error = (outcome.gradients.double() - truth.gradients)[untouched].norm()
    assert error <= 0.2 * truth.gradients[untouched].norm()


def check(emulator: Emulator, *calls: Call, exactly: bool = True) -> None:
    for call, outcome in zip(calls, emulator.run(calls), strict=True):
        assert_same_kinds(call, outcome, exactly=exactly)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nan_in_a_pixel_is_that_pixels_loss(seed, emulator, arithmetic, options):
    call = all_active(seed, arithmetic, options, torch.float32)
    for pixel, bits in enumerate(NANS):
        call.features1[7 * pixel, pixel] = nan_of(bits)
        if call.features2 is not None:
            call.features2[7 * pixel + 1, pixel] = nan_of(bits)
    (outcome,) = emulator.run([call])
    touched = [7 * pixel + view for pixel in range(len(NANS)) for view in range(2)]
    touched = touched[:: 2 if call.features2 is None else 1]
    assert outcome.values.isnan().nonzero().flatten().tolist() == touched
    assert_same_kinds(call, outcome)


@pytest.mark.parametrize("bits", NANS, ids=hex)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_nan_in_a_negative_reaches_the_anchors_of_other_classes(seed, emulator, arithmetic, bits):
    calls = []
    for options in OPTIONS:
        call = all_active(seed, arithmetic, options, torch.float32)
        call.negatives[64, 5] = nan_of(bits)  # of class 1
        calls.append(call)
    for call, outcome in zip(calls, emulator.run(calls), strict=True):
        # The row maximum is taken over negatives of every class.
        touched = (call.anchor_labels != 1) | (call.eps > 0)
        assert torch.equal(outcome.values.isnan(), touched)
        assert_same_kinds(call, outcome)


@pytest.mark.parametrize("channel", [5, 290])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_nan_in_any_part_of_a_wide_row_reaches_the_same_losses(seed, emulator, arithmetic, channel):
    calls = []
    for options in OPTIONS:
        call = all_active(seed, arithmetic, options, torch.float32, channels=300)
        call.negatives[64, channel] = torch.nan  # of class 1
        call.negatives[65, channel] = torch.inf  # of class 2
        call.features1[14, channel] = torch.nan
        calls.append(call)
    # The low part of an infinite float32 is nan.
    check(emulator, *calls, exactly=arithmetic != "fp32")


@pytest.mark.parametrize("channels", [24, 300])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_unit_full_of_nan_leaves_no_trace_in_its_own_class(seed, emulator, arithmetic, channels):
    clean = all_active(seed, arithmetic, {}, torch.float32, channels)
    dirty = all_active(seed, arithmetic, {}, torch.float32, channels)
    own = clean.negative_labels == 0
    clean.negatives[own] = 0.0
    dirty.negatives[own] = torch.nan
    expected, outcome = emulator.run([clean, dirty])
    anchors = clean.anchor_labels == 0
    assert torch.equal(outcome.values[anchors], expected.values[anchors])
    assert torch.equal(outcome.gradients[anchors], expected.gradients[anchors])
    assert outcome.values[~anchors].isnan().all()
    assert outcome.gradients[~anchors].isnan().all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_infinity_is_not_lost(seed, emulator, arithmetic, sign):
    for options in OPTIONS:
        raw = options.get("normalize") is False
        in_pixels = all_active(seed, arithmetic, options, torch.float32)
        in_pixels.features1[11, 3] = in_pixels.features1[40, 5] = sign * torch.inf
        if in_pixels.features2 is not None:
            in_pixels.features2[20, 3] = in_pixels.features2[21, 3] = sign * torch.inf
        in_negatives = all_active(seed, arithmetic, options, torch.float32)
        in_negatives.negatives[64, 5] = sign * torch.inf
        # float32 is split into two parts, of which the second is nan for infinity.
        check(emulator, in_pixels, in_negatives, exactly=not (raw and arithmetic == "fp32"))


@pytest.mark.parametrize("arithmetic", ["bf16", "fp16"])
def test_the_types_of_16_bits_pass_nan_and_infinity_on(seed, emulator, arithmetic):
    calls = []
    for what in (torch.nan, torch.inf, -torch.inf):
        for options in ({}, {"normalize": False}):
            call = all_active(seed, arithmetic, options)
            call.features1[8, 2] = call.features2[19, 1] = call.negatives[64, 5] = what
            calls.append(call)
    check(emulator, *calls)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_inactive_pixels_may_hold_anything(seed, emulator, arithmetic):
    clean, dirty = (make_call(seed, 80, 130, 24, arithmetic) for _ in range(2))
    inactive = clean.direction == 0
    dirty.features1[inactive], dirty.features2[inactive] = torch.nan, torch.inf
    expected, outcome = emulator.run([clean, dirty])
    assert torch.equal(outcome.values, expected.values)
    assert torch.equal(outcome.gradients, expected.gradients)
    assert (outcome.gradients[inactive] == 0).all()
