"""Every rival computes the same as the float64 reference."""

from __future__ import annotations

import pytest
import torch

import cac_ext
from benchmarks.cases import Case, find_cases, make_inputs
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.implementations.flex_attention import FlexAttention
from benchmarks.loss.correctness import check
from benchmarks.operations import Workload

EAGER = ["ours", "official", "naive", "tiled", "flash-attention"]
#: More than one chunk of the official algorithm, more than one tile of the tiled one.
CASE = Case("small", A=96, N=8_500, C=32, K=9)
#: Rare classes share tiles; some have no anchor or no negative.
MANY_CLASSES = Case("many classes", A=96, N=700, C=16, K=120, background_share=0.2)
#: Anchors without any negative of another class.
ONE_CLASS = Case("one class", A=40, N=300, C=16, K=1)


@pytest.mark.parametrize("case", [CASE, MANY_CLASSES], ids=lambda case: case.name)
@pytest.mark.parametrize("name", EAGER)
def test_loss_and_gradient_equal_the_float64_oracle(name: str, case: Case, seed: int) -> None:
    outcome = check(IMPLEMENTATIONS[name](), "cpu", torch.float32, seed, case)
    assert outcome.passed, outcome


@pytest.mark.parametrize("name", ["ours", "official", "tiled", "flash-attention"])
def test_bfloat16_stays_within_its_tolerance(name: str, seed: int) -> None:
    outcome = check(IMPLEMENTATIONS[name](), "cpu", torch.bfloat16, seed, CASE)
    assert outcome.passed, outcome


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["as on a GPU", "as on a CPU"])
def test_flex_attention_equals_the_oracle(way: str, dtype, seed: int) -> None:
    """Uncompiled: compiling takes too long for a test."""
    flex = FlexAttention(compiled=False)
    if way == "as on a GPU":
        flex._attend_with_sink = flex._attend
    case = Case("blocks", A=600, N=1_800, C=16, K=5)  # skipped, partial and full blocks
    outcome = check(flex, "cpu", dtype, seed, case)
    assert outcome.passed, outcome


@pytest.mark.parametrize("name", [*EAGER, "flex-attention"])
def test_one_class_only_gives_zero(name: str, seed: int) -> None:
    inputs = make_inputs(ONE_CLASS, seed).requiring_grad()
    rival = FlexAttention(compiled=False) if name == "flex-attention" else IMPLEMENTATIONS[name]()
    loss = rival.loss(inputs)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.stack([inputs.features1.grad, inputs.features2.grad]).abs().max() < 1e-6


def test_a_wrong_implementation_does_not_pass(seed: int) -> None:
    class Wrong(IMPLEMENTATIONS["naive"]):
        def loss(self, inputs):
            return 1.001 * super().loss(inputs)

    assert not check(Wrong(), "cpu", torch.float32, seed, CASE).passed


def test_operations_are_counted_pair_by_pair(seed: int) -> None:
    case = Case("count", A=60, N=90, C=8, K=4)
    inputs = make_inputs(case, seed)
    labels = torch.stack([inputs.pseudo_labels1, inputs.pseudo_labels2])  # [2, A]
    pairs = (labels[:, :, None] != inputs.negative_labels) & inputs.active()[:, :, None]
    workload = Workload.of(inputs)
    assert workload.differing_pairs == int(pairs.sum())
    assert workload.one_pass_operations("both") == 4 * case.C * int(pairs.sum())
    assert workload.nominal_operations("both") == 4 * case.C * 2 * case.A * case.N


def test_paper_case_has_the_shares_it_claims() -> None:
    (case,) = find_cases(["voc"])
    workload = Workload.of(make_inputs(case, 0))
    assert workload.active_anchors / case.A == pytest.approx(0.76, abs=0.02)
    differing = workload.differing_pairs / (workload.active_anchors * case.N)
    assert differing == pytest.approx(0.65, abs=0.03)


@pytest.mark.parametrize("name", ["ours-avx512", "ours-avx2"])
def test_a_lower_instruction_set_is_used_for_the_call_alone(name: str, monkeypatch) -> None:
    capability = name.removeprefix("ours-")
    if capability not in cac_ext._C.cpu_capabilities():
        pytest.skip(f"this processor has no {capability}")
    before = cac_ext._C.cpu_capability()
    used = []

    def loss(*arguments, **options):
        used.append(cac_ext._C.cpu_capability())
        raise RuntimeError("stops here")

    monkeypatch.setattr(cac_ext, "directional_contrastive_loss", loss)
    with pytest.raises(RuntimeError, match="stops here"):
        IMPLEMENTATIONS[name]().loss(make_inputs(CASE, 0))
    assert used == [capability]
    assert cac_ext._C.cpu_capability() == before
