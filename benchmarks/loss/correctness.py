"""Compares loss and gradient of an implementation with the oracle; only equal ones are timed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.cases import CONFIDENCE_THRESHOLD, TEMPERATURE, Case, Inputs, make_inputs
from benchmarks.implementations import Implementation
from benchmarks.measure.records import CheckRecord
from cac_ext import reference

#: More negatives than one chunk of the official algorithm, so that a later chunk is checked too.
#: Channels and classes come from the timed case.
CHECK_CASE = Case("check", A=160, N=9_000, C=128, K=21, group="check")


def check_case_for(case: Case) -> Case:
    """Few anchors and negatives, with the channels and the number of classes of ``case``."""
    return replace(CHECK_CASE, C=case.C, K=case.K)


#: Largest relative error of the loss, and of the gradient in the Frobenius norm, by input type.
#: float32 products are exact to float32 unless their precision setting allows less.
TOLERANCES = {
    torch.float64: (1e-9, 1e-8),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (2e-3, 1e-2),
    torch.bfloat16: (1e-2, 3e-2),
}
#: By precision setting: here they may be rounded to TF32 or bfloat16.
REDUCED_FLOAT32 = {"high": (1e-3, 5e-3), "medium": (1e-2, 3e-2)}


@dataclass(frozen=True)
class Check:
    """Relative errors against the float64 reference on the same rounded inputs."""

    implementation: str
    dtype: str
    A: int
    N: int
    C: int
    K: int
    loss_error: float
    gradient_error: float
    loss_tolerance: float
    gradient_tolerance: float

    @property
    def passed(self) -> bool:  # nan fails
        return (
            self.loss_error <= self.loss_tolerance
            and self.gradient_error <= self.gradient_tolerance
        )

    def to_json(self) -> CheckRecord:
        return {
            "implementation": self.implementation,
            "dtype": self.dtype,
            "A": self.A,
            "N": self.N,
            "C": self.C,
            "K": self.K,
            "loss_error": self.loss_error,
            "gradient_error": self.gradient_error,
            "loss_tolerance": self.loss_tolerance,
            "gradient_tolerance": self.gradient_tolerance,
            "passed": self.passed,
        }


def check(
    implementation: Implementation,
    device: str,
    dtype: torch.dtype,
    seed: int,
    case: Case = CHECK_CASE,
) -> Check:
    """Compare loss and gradient with those of the oracle."""
    rounded = make_inputs(case, seed).to("cpu", dtype)
    inputs = rounded.to(device, dtype).requiring_grad()
    loss = implementation.loss(inputs)
    loss.backward()
    got = _gradients(inputs).double().cpu()

    oracle = rounded.to("cpu", torch.float64).requiring_grad()
    expected_loss = reference.directional_contrastive_loss(
        **vars(oracle),
        temperature=TEMPERATURE,
        confidence_threshold=CONFIDENCE_THRESHOLD,
        eps=implementation.eps,
    )
    assert isinstance(expected_loss, Tensor)  # alone, without the direction
    expected_loss.backward()
    expected = _gradients(oracle)

    tolerances = TOLERANCES[dtype]
    if dtype == torch.float32:
        tolerances = REDUCED_FLOAT32.get(torch.get_float32_matmul_precision(), tolerances)
    return Check(
        implementation=implementation.name,
        dtype=str(dtype).removeprefix("torch."),
        A=case.A,
        N=case.N,
        C=case.C,
        K=case.K,
        loss_error=abs(loss.item() / expected_loss.item() - 1),
        gradient_error=((got - expected).norm() / expected.norm()).item(),
        loss_tolerance=tolerances[0],
        gradient_tolerance=tolerances[1],
    )


def _gradients(inputs: Inputs) -> Tensor:
    """``[2, A, C]``, of both views."""
    first, second = inputs.features1.grad, inputs.features2.grad
    assert first is not None
    assert second is not None
    return torch.stack([first, second])
