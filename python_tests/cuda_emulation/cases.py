"""Calls of the CUDA kernels for the tests, and the errors allowed in their outcomes."""

from __future__ import annotations

import torch
from torch import Tensor

from cac_ext import reference

from . import Call, Outcome
from .exact import exact

#: Features of the types that each arithmetic serves; the first is the usual one.
FEATURE_DTYPES = {
    "bf16": [torch.bfloat16, torch.float32],
    "fp16": [torch.float16, torch.float32, torch.bfloat16],
    "tf32": [torch.float32],
    "fp32": [torch.float32, torch.float16],
}

#: Largest error of a cosine. For the first three it is half an ulp of both factors, which bounds it
#: for all unit vectors; float32 keeps 22 bits of every factor.
COSINE_ERROR = {"bf16": 2.0**-7, "fp16": 2.0**-10, "tf32": 2.0**-10, "fp32": 2.0**-20}

#: Stated error of the gradient at temperature 0.1, relative to the whole gradient's norm, where the
#: errors of many pairs and channels average out.
GRADIENT_ERROR = {"bf16": 1.5e-2, "fp16": 2e-3, "tf32": 2e-3, "fp32": 1e-5}

#: With fewer anchors, negatives or channels than this the errors need not average out.
FEW = 64


def make_call(
    seed: int,
    anchors: int,
    negatives: int,
    channels: int,
    arithmetic: str = "bf16",
    *,
    classes: int = 4,
    logsumexp: bool = False,
    dtype: torch.dtype | None = None,
    **options,
) -> Call:
    """Random features, clustered a little by class. A third of the anchors is inactive, and some
    anchors have a class that no negative has."""
    generator = torch.Generator().manual_seed(seed)
    dtype = dtype or FEATURE_DTYPES[arithmetic][0]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    centers = normal(classes + 1, channels)
    anchor_labels = torch.randint(0, classes + 1, (anchors,), generator=generator)
    negative_labels = torch.randint(0, classes, (negatives,), generator=generator)
    common = centers[anchor_labels] + normal(anchors, channels)
    features = [3 * common + normal(anchors, channels) for _ in range(2)]
    if options.get("normalize") is False:
        features = [torch.nn.functional.normalize(x, dim=1) for x in features]
    source = centers[negative_labels] + normal(negatives, channels)
    if options.get("normalize") is False:
        source = torch.nn.functional.normalize(source, dim=1)
    return Call(
        features1=features[0].to(dtype),
        features2=None if logsumexp else features[1].to(dtype),
        direction=torch.randint(0, 3, (anchors,), generator=generator).to(torch.int8),
        anchor_labels=anchor_labels,
        negatives=source.to(dtype),
        negative_labels=negative_labels,
        arithmetic=arithmetic,
        **options,
    )


def eager(call: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values [A] and their gradients [A, C] from `cac_ext.reference`, computed in ``dtype``."""
    options = {"temperature": call.temperature, "normalize": call.normalize}
    negatives = call.negatives.to(dtype)
    labels = (call.anchor_labels, call.negative_labels)
    active = call.direction != 0
    if call.features2 is None:
        anchors = call.features1.to(dtype).clone().requires_grad_()
        values = reference.masked_logsumexp(anchors, negatives, *labels, **options)
        values = torch.where(active, values, torch.zeros_like(values))
    else:
        second_to_first = (call.direction == 2)[:, None]
        view1, view2 = call.features1.to(dtype), call.features2.to(dtype)
        anchors = torch.where(second_to_first, view2, view1).clone().requires_grad_()
        values = reference.masked_contrastive_loss(
            anchors,
            torch.where(second_to_first, view1, view2),
            negatives,
            *labels,
            active=active,
            eps=call.eps,
            **options,
        )
    # -inf (no negative of another class) has the gradient zero.
    torch.where(values.isfinite(), values, 0).sum().backward()
    return values.detach(), anchors.grad


def assert_equals_oracle(call: Call, outcome: Outcome) -> tuple[float, float]:
    """Asserts that values and gradients are within the stated errors; returns the two errors."""
    truth = exact(call)
    values, gradients = truth.values, truth.gradients
    assert torch.equal(outcome.values.isneginf(), values.isneginf())
    finite = values.isfinite()
    value_error = relative_error = 0.0
    if finite.any():
        value_error = (outcome.values.double() - values)[finite].abs().max().item()
        allowed = COSINE_ERROR[call.arithmetic] / call.temperature
        allowed += 2e-6 * max(1.0, values[finite].abs().max().item())
        assert value_error <= allowed, f"values: error {value_error:.2e} > {allowed:.2e}"
    inactive = call.direction == 0
    assert (outcome.values[inactive] == 0).all()
    if call.with_gradient and gradients.numel():
        assert outcome.gradients.isfinite().all()
        assert (outcome.gradients[inactive] == 0).all()
        error = (outcome.gradients.double() - gradients).norm().item()
        norm = gradients.norm().item()
        # Stated for tau = 0.1. An error of the logits enters through exp, so that it grows faster.
        stated = GRADIENT_ERROR[call.arithmetic] * max(1.0, 0.2 / call.temperature - 1.0)
        if min(*call.features1.shape, len(call.negatives)) < FEW:
            # The largest error of a single pair's exp; twice, because it changes the weight of
            # the other pairs too.
            stated = max(stated, 2 * COSINE_ERROR[call.arithmetic] / call.temperature)
        # Rounding before the projection, after which only rounding may be left (C = 1).
        floor = 2e-7 / call.temperature * (1 / truth.lengths.clamp(min=1e-12)).norm().item()
        assert error <= stated * norm + floor, (
            f"gradients: relative error {error / max(norm, 1e-300):.2e} > {stated:.2e}"
        )
        relative_error = error / norm if norm > 0 else 0.0
    return value_error, relative_error
