"""Errors planted in the CUDA kernels are found: the tests on the emulated device can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_emulation import EmulationError, Emulator
from cuda_emulation.builds import CSRC, build, compiler, mutate
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
        "tile.cuh",
        "negative < same_class.y;",
        "negative <= same_class.y;",
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


OTHER_KERNELS = """\
  if (channels <= 128) return select_variant<Arithmetic, 128>(kind, gradient);
  return select_variant<Arithmetic, 256>(kind, gradient);
"""


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


@pytest.mark.parametrize("planted", MUTATIONS)
def test_planted_error_is_found(seed, tmp_path, planted):
    file, old, new, source = MUTATIONS[planted]

    def change(name: str, text: str) -> str:
        if name == "stream.cuh":
            # The check has 64 channels: kernels for more need not be compiled.
            assert OTHER_KERNELS in text
            text = text.replace(OTHER_KERNELS, "  return {};\n")
        if name != file:
            return text
        assert text.count(old) >= 1, f"{file} does not contain: {old}"
        return text.replace(old, new)

    program = build(csrc=mutate(CSRC, tmp_path, change), only=[source])
    with pytest.raises((AssertionError, EmulationError)):
        check(program, seed)
