"""The loss as functions: directional, one direction, and its masked log-sum-exp.

Shapes: A anchors (pixels of the overlap), N negatives, C channels. None of these functions ever
holds an A x N matrix. Values are float32 (float64 for float64 features); for the accuracy of each
type of features see `directional_contrastive_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cac_ext._arguments import cast_for_autocast, reject_gradient
from cac_ext.negatives import PreparedNegatives, prepare_negatives
from cac_ext.reference import direction_masks, reduce_directions


def _prepared(
    negatives: Tensor | PreparedNegatives,
    negative_labels: Tensor | None,
    normalize: bool,
    anchors: Tensor,
) -> PreparedNegatives:
    if isinstance(negatives, PreparedNegatives):
        if negative_labels is not None:
            raise ValueError(
                "negative_labels must be left out when negatives are PreparedNegatives, which "
                "carry their labels"
            )
        prepared = negatives
    elif negative_labels is None:
        raise ValueError(
            "negative_labels are missing: pass one integer label [N] for each of the negatives "
            "[N, C], or negatives from cac_ext.prepare_negatives()"
        )
    else:
        prepared = prepare_negatives(negatives, negative_labels, normalize=normalize)
    # The operators see channels after padding only.
    if anchors.dim() == 2 and prepared.channels != anchors.shape[1]:
        raise ValueError(
            f"negatives must have {anchors.shape[1]} channels like the anchors' features, but "
            f"have {prepared.channels}"
        )
    return prepared


def _wants_gradient(*features: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in features)


def masked_logsumexp(
    anchors: Tensor,
    negatives: Tensor | PreparedNegatives,
    anchor_labels: Tensor,
    negative_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    normalize: bool = True,
) -> Tensor:
    """``log sum_j [y_j != y_i] exp(cos(a_i, n_j) / tau)``: the negatives' part of Eq. 5.

    Args:
        anchors: [A, C] features; the gradient reaches these alone.
        negatives: [N, C] features, or `PreparedNegatives`.
        anchor_labels: [A] integer labels.
        negative_labels: [N] integer labels; left out with `PreparedNegatives`.
        temperature: tau > 0.
        normalize: Compare directions (cosine); False trusts that every row has unit length.

    Returns:
        [A] float32 (float64 for float64), -inf where no negative has another label.

    Raises:
        ValueError, TypeError, RuntimeError: see `directional_contrastive_loss`.
    """
    anchors = cast_for_autocast(anchors)[0]
    prepared = _prepared(negatives, negative_labels, normalize, anchors)
    value, _ = torch.ops.cac_ext.masked_logsumexp(
        anchors,
        prepared.features,
        anchor_labels,
        prepared.labels,
        temperature,
        normalize,
        _wants_gradient(anchors),
    )
    return value


def masked_contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor | PreparedNegatives,
    anchor_labels: Tensor,
    negative_labels: Tensor | None = None,
    *,
    active: Tensor | None = None,
    temperature: float = 0.1,
    normalize: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """``-log r(a, p) / (r(a, p) + sum_j [y_j != y] r(a, n_j))`` of each anchor (Eq. 1, 5).

    Args:
        anchors: [A, C] features; the gradient reaches these alone.
        positives: [A, C] features of the same pixels in the other view.
        negatives: [N, C] features, or `PreparedNegatives`.
        anchor_labels: [A] integer labels.
        negative_labels: [N] integer labels; left out with `PreparedNegatives`.
        active: [A] bool; the others cost nothing, their loss and gradient are 0. None: all.
        temperature: tau > 0.
        normalize: Compare directions (cosine); False trusts that every row has unit length.
        eps: As in `directional_contrastive_loss`.

    Returns:
        [A] float32 (float64 for float64).

    Raises:
        ValueError, TypeError, RuntimeError: see `directional_contrastive_loss`.
    """
    reject_gradient(positives, "positives")
    anchors, positives = cast_for_autocast(anchors, positives)
    prepared = _prepared(negatives, negative_labels, normalize, anchors)
    loss, _ = torch.ops.cac_ext.masked_contrastive_loss(
        anchors,
        positives,
        prepared.features,
        anchor_labels,
        prepared.labels,
        prepared.leading_rows,
        active,
        temperature,
        normalize,
        eps,
        _wants_gradient(anchors),
    )
    return loss


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
    temperature: float = 0.1,
    confidence_threshold: float = 0.75,
    weights: Tensor | None = None,
    reduction: str = "active_mean",
    normalize: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """The directional contrastive loss of both directions (paper Eq. 1-8) in one fused pass.

    A pixel of view 1 is an anchor towards view 2 where view 2 is the more confident one and its
    confidence passes the threshold, and the other way round; both comparisons are strict. The
    gradient reaches the anchors only: ``features1`` for direction 1 -> 2, ``features2`` for 2 -> 1.

    Args:
        features1, features2: [A, C] the same A pixels seen in view 1 and in view 2; float32,
            bfloat16, float16 or float64.
        confidences1, confidences2: [A] largest class probability.
        pseudo_labels1, pseudo_labels2: [A] integer class.
        negatives: [N, C] features, or `PreparedNegatives`.
        negative_labels: [N] integer class; left out with `PreparedNegatives`.
        temperature: tau > 0.
        confidence_threshold: gamma; positives at or below it are filtered out.
        weights: [A] factor of each pixel's loss. With ``reduction="sum"`` and 1 / (B N_b) for a
            pixel of image b it gives the paper's normaliser.
        reduction: "active_mean": masked sum / active count a direction, both added (the authors'
            code). "mean": sum / A a direction, added. "sum". "none": [2, A], row 0 for 1 -> 2.
        normalize: Compare directions (cosine); False trusts that every row has unit length.
        eps: 0 is the paper's loss; 1e-8 repeats the authors' code, which adds it to the
            denominator (in units of the row's maximum over the positive and the first 8000
            negatives) and again inside the logarithm, so that no loss exceeds about 18.4.

    Returns:
        A scalar, or [2, A] for "none"; float32 (float64 for float64 features).

    Accuracy:
        Sums are float32 and wider; under autocast its type is used. On the CPU float64 and float32
        features are multiplied in their own type, unless ``torch.set_float32_matmul_precision``
        allows less: "high" multiplies float32 as sums of two bfloat16 numbers where the processor
        has AMX (no other gains by it), "medium" as bfloat16 where it can; bfloat16 features are
        multiplied as bfloat16 where it can, float16 ones as float32. (With AMX "highest" products
        are those of three bfloat16 numbers, which hold the 24 bits of a float32.) On CUDA bfloat16
        and float16 features are multiplied in their own type and float32 ones by that precision:
        "highest" float32-accurate (three TF32 products), "high" TF32, "medium" bfloat16.

        The largest error of a cosine is then 2^-7 in bfloat16, 2^-10 in float16 and TF32, 2^-15 in
        sums of two bfloat16, 2^-20 in float32 on CUDA and 2^-24 on the CPU, beside the rounding of
        a float32 sum of C products; of a loss that over tau. Against float64, with the kernels
        executed in emulation, losses and gradients are closer than eager PyTorch's for bfloat16 and
        float16, and within 4 times its error for float32. float64 and more than 256 channels run
        on CUDA too, by plain ATen. GPUs before sm_80 multiply bfloat16 features, and "high" and
        "medium" float32 ones, as float16.

    Raises:
        ValueError: A shape, device, label count, temperature or option that does not fit, or a
            feature that is not finite, with its place (CPU only: a look would stall a GPU).
        TypeError: A type that does not fit.
        RuntimeError: A gradient is asked for that does not exist: of the negatives, or a second
            derivative.
    """
    features1, features2 = cast_for_autocast(features1, features2)
    prepared = _prepared(negatives, negative_labels, normalize, features1)
    if weights is not None and weights.shape != features1.shape[:1]:
        raise ValueError(
            f"weights must have shape [{features1.shape[0]}], one factor for each pixel, but got "
            f"{list(weights.shape)}"
        )
    loss, _, _ = torch.ops.cac_ext.directional_contrastive_loss(
        features1,
        features2,
        confidences1,
        confidences2,
        pseudo_labels1,
        pseudo_labels2,
        prepared.features,
        prepared.labels,
        prepared.leading_rows,
        temperature,
        confidence_threshold,
        normalize,
        eps,
        _wants_gradient(features1, features2),
    )
    active = direction_masks(confidences1, confidences2, confidence_threshold)  # [2, A]
    return reduce_directions(loss, active, weights, reduction)
