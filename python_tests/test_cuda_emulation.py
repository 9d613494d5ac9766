"""The CUDA kernels equal the oracle, executed on an emulated device.

The .cu sources themselves run here, compiled as C++ (see cuda_emulation/device_emulation.h): every
arithmetic, channel bucket and variant, on shapes that end inside tiles, also under sanitizers.
"""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import ARITHMETICS, Call, EmulationError, Emulator
from cuda_emulation.builds import CSRC, build, compiler, mutate
from cuda_emulation.cases import FEATURE_DTYPES, assert_equals_oracle, eager, make_call
from cuda_emulation.exact import exact

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

#: One of each bucket of channels (64, 128, 256), none of them full.
CHANNELS = [5, 100, 250]

#: Rows that warps divide among each other: just too long for one, and those of networks in use.
WIDE = [257, 384, 512, 720, 768, 1024]

#: "No worse than eager PyTorch at the same input type, times this." tf32 is missing, because eager
#: PyTorch does not use it on the CPU, even with torch.set_float32_matmul_precision("high").
NO_WORSE_THAN_EAGER = {"bf16": 1.0, "fp16": 1.0, "fp32": 4.0}


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(build())


def check(emulator: Emulator, *calls: Call) -> None:
    for call, outcome in zip(calls, emulator.run(calls), strict=True):
        assert_equals_oracle(call, outcome)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_every_instance_equals_the_oracle(seed, emulator, arithmetic, channels):
    options = [
        {"temperature": 0.1},
        {"temperature": 0.02},  # running maximum
        {"temperature": 0.1, "with_gradient": False},
        {"temperature": 0.5, "logsumexp": True},
        {"temperature": 0.07, "eps": 1e-3},
        {"temperature": 0.1, "normalize": False},
    ]
    check(
        emulator,
        *(make_call(seed + i, 90, 150, channels, arithmetic, **o) for i, o in enumerate(options)),
    )


@pytest.mark.parametrize("channels", WIDE)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_wide_rows_equal_the_oracle(seed, emulator, arithmetic, channels):
    options = [
        {"temperature": 0.1},
        {"temperature": 0.02, "eps": 1e-3},  # running maximum
        {"temperature": 0.5, "logsumexp": True, "with_gradient": False},
        # Of an H100: units of two strips.
        {"temperature": 0.1, "shared_kib": 227, "normalize": False},
    ]
    check(
        emulator,
        *(make_call(seed + i, 50, 70, channels, arithmetic, **o) for i, o in enumerate(options)),
    )


@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
@pytest.mark.parametrize("shared_kib", [99, 163, 227])
def test_wide_tiles_that_end_anywhere(seed, emulator, arithmetic, shared_kib):
    sizes = [(1, 1), (32, 16), (33, 17), (31, 31), (16, 33), (40, 0), (1, 200)]
    calls = [
        make_call(seed, anchors, negatives, 264, arithmetic, shared_kib=shared_kib, **options)
        for anchors, negatives in sizes
        for options in ({}, {"temperature": 0.01, "eps": 1e-4})
    ]
    check(emulator, *calls)


def test_the_exact_outcome_equals_the_oracle(seed):
    for options in ({}, {"logsumexp": True}, {"eps": 1e-3}, {"normalize": False}):
        call = make_call(seed, 40, 60, 24, "fp32", **options)
        truth = exact(call)
        values, gradients = eager(call, torch.float64)
        assert torch.allclose(truth.values, values, rtol=1e-10, atol=1e-10)
        assert torch.allclose(truth.gradients, gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_every_type_of_features(seed, emulator, arithmetic):
    check(
        emulator,
        *(make_call(seed, 40, 80, 24, arithmetic, dtype=d) for d in FEATURE_DTYPES[arithmetic]),
    )


@pytest.mark.parametrize("arithmetic", NO_WORSE_THAN_EAGER)
def test_no_worse_than_eager_at_the_same_type(seed, emulator, arithmetic):
    # Many values at once, because the largest of a few errors is a matter of chance.
    call = make_call(seed, 200, 400, 128, arithmetic)
    (outcome,) = emulator.run([call])
    truth = exact(call)
    values, gradients = eager(call, call.features1.dtype)
    finite = truth.values.isfinite()
    for name, ours, theirs, true in (
        ("values", outcome.values[finite], values[finite], truth.values[finite]),
        ("gradients", outcome.gradients, gradients, truth.gradients),
    ):
        error = (ours.double() - true).norm()
        allowed = NO_WORSE_THAN_EAGER[arithmetic] * (theirs.double() - true).norm()
        assert error <= allowed, f"{name}: error {error:.2e} > {allowed:.2e}"


@pytest.mark.parametrize(
    ("anchors", "negatives"),
    [(1, 1), (1, 300), (129, 1), (128, 64), (127, 63), (129, 65), (300, 257), (40, 0)],
)
def test_tiles_that_end_anywhere(seed, emulator, anchors, negatives):
    check(
        emulator,
        make_call(seed, anchors, negatives, 16),
        make_call(seed, anchors, negatives, 16, logsumexp=True),
        make_call(seed, anchors, negatives, 16, temperature=0.01, eps=1e-4),
    )


@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
def test_masks_that_begin_and_end_at_tile_borders(seed, emulator, arithmetic):
    calls = []
    for sizes in ([63, 1, 64, 65], [64, 64, 64], [1, 126, 1, 128], [0, 128, 0, 127], [32, 31, 33]):
        call = make_call(seed, 140, sum(sizes), 16, arithmetic, classes=len(sizes))
        labels = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)])
        call.negative_labels = labels[torch.randperm(len(labels))]
        calls.append(call)
    check(emulator, *calls)


def test_launches_of_a_call(seed, emulator):
    calls = [
        make_call(seed, 300, 200, channels, **options)
        for channels in (16, 300)
        for options in ({}, {"eps": 1e-3}, {"with_gradient": False}, {"wave_tiles": 1})
    ]
    launches = [outcome.launches for outcome in emulator.run(calls)]
    # Prepare, schedule, stream, combine; eps adds a stream and the row maximum. Each further wave
    # has a stream and a combine: 3 tiles of 128 slots, and 10 of 32.
    assert launches == [4, 6, 4, 2 + 2 * 3, 4, 6, 4, 2 + 2 * 10]


def test_no_anchor_active_one_and_all(seed, emulator):
    nobody, one, everybody = (make_call(seed, 200, 130, 16) for _ in range(3))
    nobody.direction.zero_()
    one.direction.zero_()
    one.direction[157] = 2
    everybody.direction.fill_(1)
    check(emulator, nobody, one, everybody)
    assert emulator.run([nobody])[0].matrix_products == 0


def test_one_class_only(seed, emulator):
    call = make_call(seed, 130, 200, 16)
    call.negative_labels.fill_(3)
    check(emulator, call)
    call.anchor_labels.fill_(3)
    (outcome,) = emulator.run([call])
    assert (outcome.values == 0).all()
    assert (outcome.gradients == 0).all()
    assert outcome.matrix_products == 0
    call.features2 = None
    (outcome,) = emulator.run([call])
    assert outcome.values[call.direction != 0].isneginf().all()


def test_own_class_is_skipped_not_masked(seed, emulator):
    # 4 units of 64 negatives are class 0, 1 is class 1. Anchors of class 0 meet only the last one.
    call = make_call(seed, 128, 320, 64)
    call.direction.fill_(1)
    call.anchor_labels.zero_()
    call.negative_labels = (torch.arange(320) >= 256).long()
    (of_class_0,) = emulator.run([call])
    call.anchor_labels.fill_(7)
    (of_no_class,) = emulator.run([call])
    assert of_no_class.matrix_products == 5 * of_class_0.matrix_products > 0
    # With every second anchor of class 1, sorting still keeps the tiles of both classes apart.
    call = make_call(seed, 256, 320, 64)
    call.direction.fill_(1)
    call.anchor_labels = (torch.arange(256) % 2).long()
    call.negative_labels = (torch.arange(320) >= 256).long()
    (both,) = emulator.run([call])
    assert both.matrix_products == 5 * of_class_0.matrix_products


@pytest.mark.parametrize("arithmetic", ["bf16", "tf32"])
def test_work_divided_in_any_way_gives_the_same(seed, emulator, arithmetic):
    options = [{"max_workers": w, "wave_tiles": t} for w, t in [(1, 0), (2, 2), (5, 1), (11, 0)]]
    options += [{"max_workers": 5, "wave_tiles": 1, "eps": 1e-3, "temperature": 0.05}]
    calls = [make_call(seed, 300, 700, 8, arithmetic, **o) for o in options]
    calls += [make_call(seed, 90, 150, 300, arithmetic, **o) for o in options]
    check(emulator, *calls)


@pytest.mark.parametrize(("anchors", "negatives", "channels"), [(200, 500, 20), (60, 100, 400)])
@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
def test_bitwise_the_same_in_every_order_of_warps_and_blocks(
    seed, emulator, arithmetic, anchors, negatives, channels
):
    options = {"max_workers": 3, "wave_tiles": 1}
    calls = [
        make_call(seed, anchors, negatives, channels, arithmetic, execution_order=order, **options)
        for order in (0, 1, seed + 2, seed + 3)
    ]
    first, *others = emulator.run(calls)
    for other in others:
        assert torch.equal(first.values, other.values)
        assert torch.equal(first.gradients, other.gradients)


def test_rows_with_gaps_between_them(seed, emulator):
    call = make_call(seed, 50, 70, 24)
    dense = emulator.run([call])[0]
    for name in ("features1", "features2", "negatives"):
        spread = torch.full((getattr(call, name).shape[0], 37), torch.nan, dtype=torch.bfloat16)
        spread[:, 5:29] = getattr(call, name)
        setattr(call, name, spread[:, 5:29])
    spread = emulator.run([call])[0]
    assert torch.equal(dense.values, spread.values)
    assert torch.equal(dense.gradients, spread.gradients)


def test_every_multiprocessor_has_work_if_memory_allows(emulator):
    # The pixels of a batch of VOC, two blocks on each of the 132 multiprocessors of an H100.
    plan = emulator.plan(6400, 51_200, 128, "bf16", multiprocessors=264)
    assert plan["max_workers"] == 264
    assert plan["wave_tiles"] == plan["max_tiles"] == 50


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("channels", [64, 128, 256, 768])
def test_the_workspace_is_bounded_by_the_negatives(emulator, arithmetic, channels):
    for anchors in (1, 500, 6400, 100_000, 3_000_000):
        for negatives in (1, 500, 51_200, 500_000):
            for multiprocessors in (1, 20, 132, 264, 1000):
                plan = emulator.plan(anchors, negatives, channels, arithmetic, multiprocessors)
                assert 1 <= plan["max_workers"] <= multiprocessors
                assert 1 <= plan["wave_tiles"] <= plan["max_tiles"]
                size = ARITHMETICS[arithmetic][1].itemsize
                bound = max(24 << 20, 2 * negatives * channels * size)
                per_anchor = 32 * anchors + 4096  # the schedule
                assert plan["workspace_bytes"] <= bound + per_anchor


def build_for(architecture: int, *stems: str) -> Emulator:
    """The program with some of its sources compiled for another GPU (750 is Turing)."""
    return Emulator(build(flags=[f"-DCAC_EMULATED_ARCHITECTURE={architecture}"], only=stems))


@pytest.fixture(scope="module")
def turing() -> Emulator:
    return build_for(750, "launch", "stream_bf16", "stream_fp16", "stream_fp32")


def test_a_gpu_without_tf32_multiplies_float32_and_float16(seed, turing):
    check(
        turing,
        make_call(seed, 40, 90, 30, "fp32"),
        make_call(seed, 20, 40, 128, "fp32"),
        make_call(seed, 40, 90, 250, "fp16"),
        make_call(seed, 40, 90, 640, "fp16"),
    )


@pytest.mark.parametrize(
    ("channels", "arithmetic"), [(129, "fp32"), (300, "fp32"), (641, "fp16"), (1024, "fp16")]
)
def test_a_problem_beyond_the_device_does_not_fit(seed, turing, channels, arithmetic):
    with pytest.raises(EmulationError, match="does not fit the device"):
        turing.run([make_call(seed, 20, 40, channels, arithmetic)])


def test_more_channels_than_the_kernels_take_are_refused(emulator):
    with pytest.raises(EmulationError, match="at most 1024 channels, but got 1025"):
        emulator.plan(20, 40, 1025, "bf16", multiprocessors=1)


def test_code_of_too_old_an_architecture_is_refused(seed, turing):
    with pytest.raises(EmulationError, match="compiled for sm_75, but this precision needs sm_80"):
        turing.run([make_call(seed, 20, 40, 16, "bf16")])


def test_a_kernel_without_a_body_stops_instead_of_leaving_no_sums(seed):
    # The host code is compiled for sm_80, so that only the kernel itself can notice.
    mixed = build_for(750, "stream_bf16")
    with pytest.raises(EmulationError, match="trap"):
        mixed.run([make_call(seed, 20, 40, 16, "bf16")])


@pytest.fixture(scope="module")
def sanitized() -> Emulator:
    return Emulator(build(sanitize=True))


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_no_access_out_of_bounds_nor_undefined(seed, sanitized, arithmetic):
    calls = []
    sizes = [(3, 131, 66), (72, 30, 130), (136, 65, 17), (256, 33, 32), (265, 33, 40)]
    for channels, anchors, negatives in sizes:
        calls += [
            make_call(seed, anchors, negatives, channels, arithmetic),
            make_call(seed, anchors, negatives, channels, arithmetic, temperature=0.01, eps=1e-3),
        ]
    calls += [make_call(seed, 1, 1, 1, arithmetic), make_call(seed, 20, 0, 8, arithmetic)]
    calls += [make_call(seed, 150, 200, 16, arithmetic, max_workers=5, wave_tiles=1)]
    calls += [make_call(seed, 40, 40, 1024, arithmetic, shared_kib=kib) for kib in (99, 227)]
    check(sanitized, *calls)


def test_the_sanitizer_sees_one_row_too_many(seed, tmp_path):
    old, new = "i * kRowsAtOnce < rows_left", "i * kRowsAtOnce <= rows_left"

    def change(name: str, text: str) -> str:
        assert name != "tile.cuh" or old in text
        return text.replace(old, new)

    csrc = mutate(CSRC, tmp_path, change)
    program = build(sanitize=True, csrc=csrc, only=["stream_bf16"])
    with pytest.raises(EmulationError, match="AddressSanitizer"):
        check(Emulator(program), make_call(seed, 30, 64 + 32, 64))
