"""No time is reported for an implementation that computes something else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from benchmarks.cases import CONFIDENCE_THRESHOLD, TEMPERATURE, Case, make_inputs
from benchmarks.implementations import Implementation
from cac_ext import reference

#: More negatives than one chunk of the official algorithm, so that a later chunk is checked too.
#: Channels and classes are those of the case that is to be timed.
CHECK_CASE = Case("check", A=160, N=9_000, C=128, K=21, group="check")


def check_case_for(case: Case) -> Case:
    """Few anchors and negatives, with the channels and the number of classes of ``case``."""
    return replace(CHECK_CASE, C=case.C, K=case.K)


#: Largest relative error of the loss, and of the gradient in the Frobenius norm, by input type.
#: float32 products are exact to float32 unless the precision set for them allows less.
TOLERANCES = {
    torch.float64: (1e-9, 1e-8),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (2e-3, 1e-2),
    torch.bfloat16: (1e-2, 3e-2),
}
#: Under these settings they may be rounded to TF32 or bfloat16.
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
    def passed(self) -> bool:  # written so that nan fails
        return (
            self.loss_error <= self.loss_tolerance
            and self.gradient_error <= self.gradient_tolerance
        )

    def to_json(self) -> dict:
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_json(cls, data: dict) -> Check:
        return cls(**{key: value for key, value in data.items() if key != "passed"})


def check(
    implementation: Implementation,
    device: str,
    dtype: torch.dtype,
    seed: int,
    case: Case = CHECK_CASE,
) -> Check:
    """Compare loss and gradient with the oracle's."""
    rounded = make_inputs(case, seed).to("cpu", dtype)
    inputs = rounded.to(device, dtype).requiring_grad()
    loss = implementation.loss(inputs)
    loss.backward()
    got = torch.stack([inputs.features1.grad, inputs.features2.grad]).double().cpu()

    oracle = rounded.to("cpu", torch.float64).requiring_grad()
    expected_loss = reference.directional_contrastive_loss(
        **vars(oracle),
        temperature=TEMPERATURE,
        confidence_threshold=CONFIDENCE_THRESHOLD,
        eps=implementation.eps,
    )
    expected_loss.backward()
    expected = torch.stack([oracle.features1.grad, oracle.features2.grad])

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
