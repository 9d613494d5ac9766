"""The CUDA kernels of the whole family of losses equal float64, executed on an emulated device."""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import ARITHMETICS, Call, Emulator, Outcome
from cuda_emulation.builds import CSRC, build, compiler, mutate, with_one_shape
from cuda_emulation.cases import COSINE_ERROR, make_call
from torch import Tensor

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

MARGIN_SUM, EXPONENTIAL_GRADIENT, LOGISTIC_GRADIENT = 2, 3, 4


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(build())


def counted_of(call: Call) -> Tensor:
    """Which negatives count for which anchors, [A, N] bool."""
    equal = call.anchor_labels[:, None] == call.negative_labels
    counted = {"different": ~equal, "same": equal, "all": torch.ones_like(equal)}[call.mask]
    if call.valid is not None:
        counted = counted & call.valid
    if call.excluded is not None:
        ids = torch.arange(equal.shape[1]) if call.column_ids is None else call.column_ids
        counted = counted & ~((ids == call.excluded[:, None]) & (ids >= 0))
    return counted


def truth_of(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Values [A], gradients [A, C] and statistics [4, A] in float64, by autograd."""
    tau = torch.tensor(call.temperature, dtype=torch.float64, requires_grad=True)
    anchors = call.features1.double().requires_grad_()
    unit = torch.nn.functional.normalize(anchors, dim=1)
    scores = unit @ torch.nn.functional.normalize(call.negatives.double(), dim=1).T / tau
    scores.retain_grad()
    counted = counted_of(call)
    log_sum = torch.zeros(len(anchors), dtype=torch.float64)
    if call.objective is None:
        log_sum = scores.masked_fill(~counted, -torch.inf).logsumexp(1)
        values = log_sum
        if call.features2 is not None:
            positives = torch.nn.functional.normalize(call.features2.double(), dim=1)
            values = torch.logaddexp(log_sum - (unit * positives).sum(1) / tau, torch.tensor(0.0))
    elif call.objective == MARGIN_SUM:
        margin = call.log_sums.double()[:, None] - scores
        values = torch.where(counted, torch.nn.functional.softplus(margin), 0.0).sum(1)
    else:
        log_sums, weights = (x.double() for x in call.columns)
        if call.objective == EXPONENTIAL_GRADIENT:
            terms = (scores - log_sums).exp()
        else:
            terms = -torch.nn.functional.softplus(log_sums - scores)
        values = torch.where(counted, weights * terms, 0.0).sum(1)
    active = call.direction != 0
    torch.where(active & values.isfinite(), values, 0.0).sum().backward()
    negative_weight = torch.where(counted, scores.grad, 0.0).sum(1)
    along = -(scores.grad * scores.detach()).sum(1) / call.temperature
    values = torch.where(active, values.detach(), 0.0)
    if call.objective in (EXPONENTIAL_GRADIENT, LOGISTIC_GRADIENT):
        values = torch.zeros_like(values)
    statistics = torch.stack([torch.where(active, log_sum.detach(), 0.0), negative_weight.abs()])
    return values, anchors.grad, torch.cat([statistics, along[None]])


def assert_equals_truth(call: Call, outcome: Outcome) -> None:
    values, gradients, statistics = truth_of(call)
    error = 3 * COSINE_ERROR[call.arithmetic] / call.temperature + 1e-5
    positives = counted_of(call).sum(1) if call.objective == MARGIN_SUM else 1
    assert torch.equal(outcome.values.isneginf(), values.isneginf())
    finite = values.isfinite()
    assert (
        (outcome.values - values)[finite].abs() <= (error * positives + 0 * values)[finite]
    ).all()
    if outcome.gradients is None:
        return
    assert (outcome.gradients[call.direction == 0] == 0).all()
    size = gradients.norm() + error / call.temperature
    assert (outcome.gradients - gradients).norm() <= error * size
    if outcome.statistics is None or call.objective not in (None, MARGIN_SUM):
        return
    log_sums, negative_weights, _, along = outcome.statistics
    if call.objective is None:
        assert ((log_sums - statistics[0])[statistics[0].isfinite()].abs() <= error).all()
    assert (negative_weights - statistics[1]).norm() <= error * (1 + statistics[1].norm())
    if call.features2 is None:
        limit = error * (1 + statistics[2].norm()) / call.temperature
        assert (along - statistics[2]).norm() <= limit


def check(emulator: Emulator, *calls: Call) -> None:
    for call, outcome in zip(calls, emulator.run(calls), strict=True):
        assert_equals_truth(call, outcome)


def family_call(seed: int, channels: int, arithmetic: str, kind: str, **options) -> Call:
    logsumexp = options.pop("logsumexp", True)
    call = make_call(seed, 90, 150, channels, arithmetic, logsumexp=logsumexp, **options)
    generator = torch.Generator().manual_seed(seed)
    call.direction = (call.direction != 0).to(torch.int8)
    call.excluded = torch.randint(-1, 150, (90,), generator=generator)
    call.with_statistics = call.with_gradient
    if kind == "margins":
        call.objective, call.mask = MARGIN_SUM, "same"
        call.log_sums = 3 * torch.randn(90, generator=generator)
    if kind in ("exponential", "logistic"):
        call.objective = EXPONENTIAL_GRADIENT if kind == "exponential" else LOGISTIC_GRADIENT
        call.with_statistics = False
        call.excluded = torch.arange(90)
        call.column_ids = torch.randint(-1, 90, (150,), generator=generator)
        weights = torch.rand(150, generator=generator) * 2 - 1
        call.columns = 1 / call.temperature + torch.rand(150, generator=generator), weights
    return call


@pytest.mark.parametrize("channels", [5, 100, 250, 300])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_every_instance_equals_float64(seed, emulator, arithmetic, channels):
    calls = [
        family_call(seed, channels, arithmetic, kind, mask=mask, temperature=0.3, **options)
        for kind, mask, options in [
            ("sums", "different", {}),
            ("sums", "same", {"logsumexp": False}),
            ("sums", "all", {"temperature_on_device": True}),
            ("sums", "all", {"with_gradient": False}),
            ("margins", "same", {}),
            ("margins", "same", {"with_gradient": False}),
            ("exponential", "different", {"temperature_on_device": True}),
            ("exponential", "all", {}),
            ("logistic", "same", {}),
        ]
    ]
    check(emulator, *calls)


def test_work_divided_in_any_way_gives_the_same(seed, emulator):
    for kind in ("sums", "margins", "exponential", "logistic"):
        options = [{"max_workers": w, "wave_tiles": t} for w, t in [(1, 0), (2, 2), (5, 1)]]
        valid = torch.arange(150) < 120
        check(
            emulator,
            *(
                family_call(seed, channels, "bf16", kind, mask="same", valid=valid, **o)
                for o in options
                for channels in (8, 300)
            ),
        )


@pytest.mark.parametrize("mask", ["different", "all"])
def test_eps_with_the_temperature_on_the_device(seed, emulator, mask):
    # The general kernels against those of the paper's own case, whose sums differ in order only.
    plain = make_call(seed, 90, 150, 20, "fp32", eps=1e-3, mask=mask, temperature=0.2)
    general = make_call(seed, 90, 150, 20, "fp32", eps=1e-3, mask=mask, temperature=0.2)
    general.temperature_on_device = True
    expected, found = emulator.run([plain, general])
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=1e-4, atol=1e-6)


def test_intervals_that_count_are_met_alone(seed, emulator):
    # 5 units of 64 negatives, one of each class: anchors of one class meet one unit.
    call = make_call(seed, 128, 320, 64, logsumexp=True, mask="same")
    call.direction.fill_(1)
    call.anchor_labels.fill_(2)
    call.negative_labels = torch.arange(320) // 64
    (same,) = emulator.run([call])
    call.mask = "all"
    (every,) = emulator.run([call])
    assert every.matrix_products == 5 * same.matrix_products > 0


@pytest.fixture(scope="module")
def sanitized() -> Emulator:
    return Emulator(build(sanitize=True))


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_no_access_out_of_bounds_nor_undefined(seed, sanitized, arithmetic):
    calls = [
        family_call(seed + i, channels, arithmetic, kind, mask=mask)
        for i, channels in enumerate((3, 72, 136, 256, 265))
        for kind, mask in (("sums", "same"), ("margins", "same"), ("exponential", "different"))
    ]
    check(sanitized, *calls)


@pytest.mark.parametrize("kind", ["sums", "margins", "exponential", "logistic"])
def test_bitwise_the_same_in_every_order_of_warps_and_blocks(seed, emulator, kind):
    calls = [
        family_call(seed, 20, "bf16", kind, max_workers=3, wave_tiles=1, execution_order=order)
        for order in (0, 1, seed + 2)
    ]
    first, *others = emulator.run(calls)
    for other in others:
        assert torch.equal(first.values, other.values)
        assert torch.equal(first.gradients, other.gradients)


#: Planted error -> (source file, text, its replacement, source to compile again, kind of call).
MUTATIONS = {
    "nothing excluded": (
        "scores.cuh",
        "masked = masked || id == excluded_;",
        "",
        "stream_fp32",
        "exponential",
    ),
    "the excluded unit not masked": (
        "schedule.cu",
        "excluded_end = high > excluded_end ? high : excluded_end;\n      }",
        "}",
        "schedule",
        "sums",
    ),
    "the outside of the interval counted": (
        "scores.cuh",
        "masked = masked != counts_;",
        "",
        "stream_fp32",
        "margins",
    ),
    "the last unit of an interval lost": (
        "schedule.cu",
        "(hull_end + params.unit_negatives - 1) / params.unit_negatives",
        "hull_end / params.unit_negatives",
        "schedule",
        "margins",
    ),
    "weights of columns left out": (
        "scores.cuh",
        "column.weight = column_weights[negative];",
        "",
        "stream_fp32",
        "logistic",
    ),
    "margins of masked negatives counted": (
        "scores.cuh",
        "if (!masked) slot_margin += margin;",
        "slot_margin += margin;",
        "stream_fp32",
        "margins",
    ),
}


@pytest.mark.parametrize("planted", MUTATIONS)
def test_planted_error_is_found(tmp_path, planted):
    file, old, new, source, kind = MUTATIONS[planted]

    def change(name: str, text: str) -> str:
        if name == "stream.cuh":
            text = with_one_shape(text, "select_narrow<Arithmetic, 64>")  # for 20 channels
        if name != file:
            return text
        assert text.count(old) == 1, f"{file} does not contain once: {old}"
        return text.replace(old, new)

    mask = "all" if kind == "sums" else "same"
    call = family_call(5, 20, "fp32", kind, mask=mask, max_workers=40)
    check(Emulator(build()), call)
    program = build(csrc=mutate(CSRC, tmp_path, change), only=[source])
    with pytest.raises(AssertionError):
        check(Emulator(program), call)
