"""Errors planted in the CUDA kernels are found: the tests on the emulated device can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_emulation import EmulationError, Emulator
from cuda_emulation.builds import CSRC, build, compiler, mutate, with_one_shape
from cuda_emulation.cases import assert_equals_oracle, make_call

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

#: Planted error -> (source file, text, its replacement, source to compile again).
MUTATIONS = {
    "barrier before a buffer is filled again removed": (
        "stream.cuh",
        "    // Now every warp is also done with the buffer that the next copy fills.\n"
        "    __syncthreads();\n",
        "",
        "stream_fp32",
    ),
    "barrier between two tiles of a share removed": (
        "stream.cuh",
        "        // The next tile is written to shared memory that slower warps may still read.\n"
        "        __syncthreads();\n",
        "",
        "stream_fp32",
    ),
    "mask off by one": (
        "scores.cuh",
        "negative < same_class_.y;",
        "negative <= same_class_.y;",
        "stream_fp32",
    ),
    "wait for the copies left out": (
        "stream.cuh",
        "    device::wait_for_copies<Shape::kStages - 2>();\n",
        "",
        "stream_fp32",
    ),
    "wait for one copy too few": (
        "stream.cuh",
        "wait_for_copies<Shape::kStages - 2>",
        "wait_for_copies<Shape::kStages - 1>",
        "stream_fp32",
    ),
    "one unit too many skipped": (
        "schedule.cu",
        "common_end == all ? units : common_end / params.unit_negatives",
        "common_end == all ? units : common_end / params.unit_negatives + 1",
        "schedule",
    ),
    "counters of a warp overwritten before all lanes have read them": (
        "schedule.cu",
        "    const int32_t offset = bucket >= 0 ? mine[bucket] : 0;\n    __syncwarp();\n",
        "    const int32_t offset = bucket >= 0 ? mine[bucket] : 0;\n",
        "schedule",
    ),
    "last partial of a tile forgotten": (
        "combine.cu",
        "last - first + 1}",
        "last - first}",
        "combine",
    ),
}


#: The same in the kernels for more than 256 channels; all are in wide.cuh.
WIDE_MUTATIONS = {
    "barrier between anchors and their fragments removed": (
        "  __syncthreads();\n  const AnchorsInRegisters",
        "  const AnchorsInRegisters",
    ),
    "barrier before parts of scores are added removed": (
        "    // Now all parts of the scores are there, and all warps are done with the last "
        "probabilities.\n    __syncthreads();\n",
        "",
    ),
    "barrier before probabilities are read removed": (
        "    // Now all probabilities are there, and all parts of the scores have been read.\n"
        "    __syncthreads();\n",
        "",
    ),
    "wait for one copy too few": ("wait_for_copies<1>", "wait_for_copies<2>"),
    "channels of the first warp copied by all": ("warp * Shape::kRowBytes,", "0,"),
    "last part of the scores left out": ("if (i < layout.warps) {", "if (i + 1 < layout.warps) {"),
    "weighted sums keep the old maximum": ("weighted[m][c][2 * half] *= rescale;", ""),
    "second strip is the first once more": ("* Shape::kStripBytes, lane);", "* 0, lane);"),
}


def check_wide(program: Path, seed: int) -> None:
    """The same for 300 channels: both numbers of strips, bounded shift and running maximum."""
    calls = [
        make_call(seed + order, 60, 90, 300, "fp32", execution_order=order, **options)
        for order, options in enumerate(
            [
                {"max_workers": 1},
                {"max_workers": 2, "temperature": 0.02},
                {"max_workers": 3, "shared_kib": 227},
            ]
        )
    ]
    generator = torch.Generator().manual_seed(seed)
    for call in calls:
        for name in ("features1", "features2", "negatives"):
            setattr(call, name, torch.randn(getattr(call, name).shape, generator=generator))
        call.direction.fill_(1)
    for call, outcome in zip(calls, Emulator(program).run(calls), strict=True):
        assert_equals_oracle(call, outcome)


def check(program: Path, seed: int) -> None:
    """A few calls under several orders of warps, in float32, which has the tightest bounds.

    There are tiles of one class (3 of 7 units are skipped) and of two (negatives are masked), the
    shares of most workers touch two tiles, and every buffer is used more than once.
    """
    generator = torch.Generator().manual_seed(seed)
    calls = []
    for order, max_workers in ((0, 1), (1, 3), (seed + 2, 4)):
        options = {"execution_order": order, "max_workers": max_workers}
        call = make_call(seed, 240, 400, 64, "fp32", **options)
        # Features without a common part, so that no large probability hides an error.
        for name in ("features1", "features2", "negatives"):
            shape = getattr(call, name).shape
            setattr(call, name, torch.randn(shape, generator=generator))
        call.direction = (1 + torch.arange(240) % 2).to(torch.int8)
        call.direction[:24] = 0
        call.anchor_labels = torch.arange(240) % 3
        call.negative_labels = (torch.randperm(400, generator=generator) >= 200).long()
        calls.append(call)
    for call, outcome in zip(calls, Emulator(program).run(calls), strict=True):
        assert_equals_oracle(call, outcome)


def test_without_a_mutation_the_check_passes(seed):
    check(build(), seed)
    check_wide(build(), seed)


@pytest.mark.parametrize("planted", MUTATIONS)
def test_planted_error_is_found(seed, tmp_path, planted):
    file, old, new, source = MUTATIONS[planted]

    def change(name: str, text: str) -> str:
        if name == "stream.cuh":
            text = with_one_shape(text, "select_narrow<Arithmetic, 64>")
        if name != file:
            return text
        assert text.count(old) >= 1, f"{file} does not contain: {old}"
        return text.replace(old, new)

    program = build(csrc=mutate(CSRC, tmp_path, change), only=[source])
    with pytest.raises((AssertionError, EmulationError)):
        check(program, seed)


@pytest.mark.parametrize("planted", WIDE_MUTATIONS)
def test_planted_error_in_wide_kernels_is_found(seed, tmp_path, planted):
    old, new = WIDE_MUTATIONS[planted]

    def change(name: str, text: str) -> str:
        if name == "stream.cuh":
            return with_one_shape(text, "select_wide<Arithmetic>")
        if name == "wide.cuh":
            assert text.count(old) >= 1, f"wide.cuh does not contain: {old}"
            return text.replace(old, new)
        return text

    program = build(csrc=mutate(CSRC, tmp_path, change), only=["stream_fp32"])
    with pytest.raises((AssertionError, EmulationError)):
        check_wide(program, seed)
