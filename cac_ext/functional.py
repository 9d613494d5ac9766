"""The loss of both directions as a function.

Shapes: A anchors (pixels of the overlap), N negatives, C channels. No A x N matrix is ever held.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from cac_ext._arguments import (
    as_ignore_index,
    as_number,
    as_temperature,
    cast_for_autocast,
    require_flag,
    require_reduction,
    require_weights,
)
from cac_ext._calls import apply, prepared_parts, require_fitting, wants_gradient
from cac_ext.contrast_ops import Contrast
from cac_ext.negatives import PreparedNegatives, PreparedParts
from cac_ext.ops import DirectionalContrastiveLoss


def _reduce(
    loss: Tensor,  # [2, A], 0 where a pixel is no anchor
    direction: Tensor,  # [A] 0, 1 or 2
    weights: Tensor | None,  # [A]
    reduction: str,
) -> Tensor:
    if weights is not None:
        loss = loss * weights
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / max(loss.shape[1], 1)
    counts = torch.stack([direction == 1, direction == 2]).sum(dim=1)  # [2]
    # An empty direction adds 0, as the authors' sum / (count + 1e-12) does.
    means = loss.sum(dim=1) / counts.clamp(min=1)
    return means if reduction == "active_mean_each" else means.sum()


@overload
def directional_contrastive_loss(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    pseudo_labels1: Tensor,
    pseudo_labels2: Tensor,
    negatives: Tensor | PreparedNegatives,
    negative_labels: Tensor | None = ...,
    *,
    temperature: float | Tensor = ...,
    confidence_threshold: float = ...,
    weights: Tensor | None = ...,
    reduction: str = ...,
    normalize: bool = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_direction: Literal[False] = ...,
) -> Tensor: ...


@overload
def directional_contrastive_loss(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    pseudo_labels1: Tensor,
    pseudo_labels2: Tensor,
    negatives: Tensor | PreparedNegatives,
    negative_labels: Tensor | None = ...,
    *,
    temperature: float | Tensor = ...,
    confidence_threshold: float = ...,
    weights: Tensor | None = ...,
    reduction: str = ...,
    normalize: bool = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_direction: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def directional_contrastive_loss(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    pseudo_labels1: Tensor,
    pseudo_labels2: Tensor,
    negatives: Tensor | PreparedNegatives,
    negative_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    confidence_threshold: float = 0.75,
    weights: Tensor | None = None,
    reduction: str = "active_mean",
    normalize: bool = True,
    eps: float = 0.0,
    ignore_index: int | None = None,
    return_direction: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The directional contrastive loss of both directions (paper Eq. 1-8) in one fused pass.

    A pixel of view 1 is an anchor (direction 1 -> 2) if view 2 is more confident about it and that
    confidence passes the threshold; both comparisons are strict. Direction 2 -> 1 is the mirror
    image. The gradient reaches the anchors only: ``features1`` in direction 1 -> 2, ``features2``
    in 2 -> 1.

    Args:
        features1, features2: [A, C] the same A pixels in view 1 and in view 2; float32, bfloat16,
            float16 or float64.
        confidences1, confidences2: [A] largest class probability; constants of the loss.
        pseudo_labels1, pseudo_labels2: [A] integer, the most probable class.
        negatives: [N, C] features, or `PreparedNegatives`.
        negative_labels: [N] integer class; leave it out with `PreparedNegatives`.
        temperature: tau > 0, a number or a tensor of one number, which may be learned. The host
            does not wait for one on a GPU.
        confidence_threshold: gamma in [0, 1]; a positive at or below it is filtered out.
        weights: [A] factor of each pixel's loss. 1 / (B N_b) for a pixel of image b and
            ``reduction="sum"`` give the paper's normalizer.
        reduction: "active_mean": masked sum / active count of each direction, added (the authors'
            code). "active_mean_each": the same, not added, [2] (what the authors log). "mean":
            sum / A of each direction, added. "sum". "none": [2, A], row 0 for 1 -> 2.
        normalize: True compares directions (cosine). A row shorter than 1e-12 is divided by 1e-12
            and has the gradient 0. False compares dot products of the given rows, of any length; on
            a GPU this needs a running maximum, which costs a little time.
        eps: 0 is the paper's loss. 1e-8 repeats the authors' code, which adds eps to the
            denominator (in units of the row maximum over the positive and the first 8000 negatives)
            and again inside the logarithm, so no loss exceeds about 18.4. The row maximum is a
            constant here, but the authors differentiate it: at tau = 0.1 the gradients differ by
            1.5e-8 of their norm. They differ visibly only if a negative of the anchor's own class
            lies more than 18 logits above the positive and every counted negative: by 0.3 of the
            norm (0.88 in the worst row) at tau = 0.03 with unnormalized, well separated classes.
        ignore_index: A label that takes no part, as in `torch.nn.functional.cross_entropy`.
            Anchors with it have loss and gradient 0 and are not counted; negatives with it count
            for no anchor.
        return_direction: Also return the direction in which each pixel is an anchor (Eq. 7).

    Returns:
        A scalar, [2] for "active_mean_each", [2, A] for "none"; float32 (float64 for float64
        features). With ``return_direction`` a pair of it and the direction, [A] int8: 1 if the
        pixel of view 1 is the anchor (1 -> 2), 2 if that of view 2 is (2 -> 1), 0 if neither.

    The gradient of a leaf tensor with rows of unit length has no part along the rows under
    ``normalize=True``, but has one under ``normalize=False``. Behind a layer that normalizes, as in
    every network, both give the same.

    Accuracy:
        ``torch.set_float32_matmul_precision`` chooses how float32 features are multiplied. The
        error column holds the largest error of a cosine, beside the rounding of a float32 sum of C
        products; divide it by tau for a loss. Under autocast the features have autocast's type.

        ======  ========  =========  =============================================  ===========
        device  features  precision  multiplied as                                  error
        ======  ========  =========  =============================================  ===========
        CPU     float64   any        float64                                        2^-53
        CPU     float32   highest    float32 (AMX: sums of three bfloat16)          2^-24
        CPU     float32   high       AMX: sums of two bfloat16; without: float32    2^-15; 2^-24
        CPU     float32   medium     bfloat16 if the processor can, else float32    2^-7; 2^-24
        CPU     bfloat16  any        bfloat16 if the processor can, else float32    2^-7; 2^-24
        CPU     float16   any        float32                                        2^-24
        CUDA    float64   any        float64, by plain ATen                         2^-53
        CUDA    float32   highest    sums of three TF32 products                    2^-20
        CUDA    float32   high       TF32 (before sm_80: float16)                   2^-10
        CUDA    float32   medium     bfloat16 (before sm_80: float16)               2^-7; 2^-10
        CUDA    bfloat16  any        bfloat16 (before sm_80: float16)               2^-7; 2^-10
        CUDA    float16   any        float16                                        2^-10
        ======  ========  =========  =============================================  ===========

        Sums are float32 and wider. Against float64, with the CUDA kernels executed in emulation,
        losses and gradients are closer than eager PyTorch's for bfloat16 and float16, and within 4
        times its error for float32. On CUDA more than 1,024 channels run by plain ATen as well.

    Raises:
        ValueError: A shape, device, label count, temperature or option that does not fit. On the
            CPU (a GPU would have to wait) also a feature or confidence that is not finite, with its
            place, and rows so long that with ``normalize=False`` a product of two over the
            temperature could reach 5e29.
        TypeError: A type that does not fit.
        RuntimeError: A gradient is asked for that does not exist: of the negatives, or a second
            derivative.
    """
    temperature, eps = as_temperature(temperature), as_number(eps, "eps")
    confidence_threshold = as_number(confidence_threshold, "confidence_threshold")
    require_flag(normalize, "normalize")
    require_flag(return_direction, "return_direction")
    require_reduction(reduction)
    ignore_index = as_ignore_index(ignore_index)
    rows = {
        "confidences1": confidences1,
        "confidences2": confidences2,
        "pseudo_labels1": pseudo_labels1,
        "pseudo_labels2": pseudo_labels2,
    }
    require_fitting({"features1": features1, "features2": features2}, rows, {}, negatives)
    if weights is not None:
        require_weights(weights, features1, "features1")
    features1, features2 = cast_for_autocast(features1, features2)
    prepared = prepared_parts(negatives, negative_labels, normalize, ignore_index)
    if isinstance(temperature, Tensor):
        losses, direction = _with_learned_temperature(
            features1, features2, confidences1, confidences2, pseudo_labels1, pseudo_labels2,
            prepared, temperature, confidence_threshold, normalize, eps, ignore_index,
        )  # fmt: skip
        loss = _reduce(losses, direction, weights, reduction)
        return (loss, direction) if return_direction else loss
    losses, _, direction = apply(
        "directional_contrastive_loss",
        DirectionalContrastiveLoss,
        features1,
        features2,
        confidences1.detach(),
        confidences2.detach(),
        pseudo_labels1,
        pseudo_labels2,
        prepared.features,
        prepared.labels,
        prepared.leading_rows,
        prepared.num_valid,
        temperature,
        confidence_threshold,
        normalize,
        eps,
        ignore_index,
        wants_gradient(features1, features2),
    )
    loss = _reduce(losses, direction, weights, reduction)
    return (loss, direction) if return_direction else loss


def _with_learned_temperature(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    pseudo_labels1: Tensor,
    pseudo_labels2: Tensor,
    prepared: PreparedParts,
    temperature: Tensor,
    confidence_threshold: float,
    normalize: bool,
    eps: float,
    ignore_index: int | None,
) -> tuple[Tensor, Tensor]:
    """Losses [2, A] and directions [A] by the operator that differentiates the temperature."""
    # Without negatives the usual operator costs little and gives the direction.
    none = prepared.features[:0]
    _, _, direction = torch.ops.cac_ext.directional_contrastive_loss(
        features1.detach(),
        features2.detach(),
        confidences1.detach(),
        confidences2.detach(),
        pseudo_labels1,
        pseudo_labels2,
        none,
        prepared.labels[:0],
        prepared.leading_rows[:0],
        torch.zeros_like(prepared.num_valid),
        1.0,
        confidence_threshold,
        normalize,
        0.0,
        ignore_index,
        False,
    )
    swapped = direction == 2  # [A]
    losses, _, _ = apply(
        "contrast",
        Contrast,
        torch.where(swapped[:, None], features2, features1),
        torch.where(swapped[:, None], features1, features2).detach(),
        None,
        temperature,
        torch.where(swapped, pseudo_labels2.long(), pseudo_labels1.long()),
        direction != 0,
        None,
        prepared.features,
        prepared.labels,
        None,
        prepared.leading_rows,
        prepared.num_valid,
        "different",
        normalize,
        eps,
        ignore_index,
        wants_gradient(features1, features2, temperature),
    )
    rows = [torch.where(direction == view, losses, 0.0) for view in (1, 2)]
    return torch.stack(rows), direction
