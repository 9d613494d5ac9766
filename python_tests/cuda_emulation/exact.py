"""The exact outcome of a call of the kernels, in float64, by separate formulas (paper Eq. 1-8)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from . import Call

#: Length up to which a vector counts as zero, as in `torch.nn.functional.normalize`.
MIN_NORM = 1e-12

#: Negatives over which the authors' code takes the row maximum.
LEADING_CHUNK = 8000


@dataclasses.dataclass
class Truth:
    values: Tensor  # [A]
    gradients: Tensor  # [A, C], all nan in a row with a nan or an infinity
    lengths: Tensor  # [A] of the anchors' vectors
    #: [A] bound of the gradient's row before its terms cancel.
    gradient_size: Tensor
    #: [A] largest product of lengths in a logit.
    logit_size: Tensor
    #: [A] possible error of that product, from elements so near the middle between two numbers of
    #: the arithmetic that float32 and float64 may round them differently.
    logit_doubt: Tensor


def round_to(arithmetic: str, x: Tensor) -> Tensor:
    """``x`` rounded as the factors of the arithmetic's products, float64."""
    x = x.float()
    if arithmetic == "bf16":
        x = x.bfloat16()
    elif arithmetic == "fp16":
        x = x.half()
    elif arithmetic == "tf32":
        rounded = ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
        x = torch.where(x.isfinite(), rounded, x)
    return x.double()


def rounding_doubt(arithmetic: str, x: Tensor) -> Tensor:
    """[R] length of the difference between the roundings of a row a few float32 units apart."""
    return (round_to(arithmetic, x * (1 + 3e-7)) - round_to(arithmetic, x * (1 - 3e-7))).norm(dim=1)


def largest(x: Tensor) -> Tensor:
    return x.max() if len(x) else x.new_zeros(())


def unit(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Rows as they are compared, and their lengths [R, 1] before."""
    lengths = x.norm(dim=1, keepdim=True)
    return (x / lengths.clamp(min=MIN_NORM) if normalize else x), lengths


def exact(call: Call, *, rounded: bool = False) -> Truth:
    """Exact values and gradients. ``rounded``: for elements rounded as in the kernels' products, so
    that the kernels differ only by the rounding of sums and probabilities."""
    tau, eps = call.temperature, call.eps
    view1 = call.features1.double()
    active = call.direction != 0
    if call.features2 is None:
        raw_anchors, raw_positives = view1, torch.zeros_like(view1)
    else:
        view2 = call.features2.double()
        second_to_first = (call.direction == 2)[:, None]
        raw_anchors = torch.where(second_to_first, view2, view1)
        raw_positives = torch.where(second_to_first, view1, view2)
    anchors, lengths = unit(raw_anchors, call.normalize)  # [A, C], [A, 1]
    positives, _ = unit(raw_positives, call.normalize)
    valid = slice(None) if call.valid is None else call.valid
    negatives, _ = unit(call.negatives[valid].double(), call.normalize)  # [N, C]
    read_anchors = anchors
    doubts = anchors.new_zeros(len(anchors)), negatives.new_zeros(len(negatives))
    if rounded:
        doubts = (
            rounding_doubt(call.arithmetic, anchors),
            rounding_doubt(call.arithmetic, negatives),
        )
        read_anchors = round_to(call.arithmetic, anchors)
        negatives = round_to(call.arithmetic, negatives)

    met = call.anchor_labels[:, None] != call.negative_labels[valid]  # [A, N]
    logits = read_anchors @ negatives.T / tau  # [A, N]
    masked = logits.masked_fill(~met, -torch.inf)
    padded = torch.cat([masked, masked.new_full((len(masked), 1), -torch.inf)], dim=1)
    log_sum = padded.logsumexp(dim=1, keepdim=True)  # [A, 1]
    probability = torch.where(met & (log_sum > -torch.inf), (masked - log_sum).exp(), 0.0)  # [A, N]
    mean = probability @ negatives.nan_to_num(0.0, 0.0, 0.0)  # [A, C]
    positive = (anchors * positives).sum(dim=1, keepdim=True) / tau  # [A, 1]
    if call.features2 is None:
        values = log_sum
        weight_mean, weight_positive = torch.ones_like(log_sum), torch.zeros_like(log_sum)
    elif eps == 0:
        margin = log_sum - positive
        values = torch.logaddexp(margin, torch.zeros_like(margin))
        weight_mean = weight_positive = margin.sigmoid()
    else:
        leading = logits[:, :LEADING_CHUNK]
        row_max = torch.cat([positive, leading], dim=1).amax(dim=1, keepdim=True)
        positive_exp = (positive - row_max).exp()
        negative_exp = (log_sum - row_max).exp()
        denominator = positive_exp + negative_exp + eps
        p = positive_exp / denominator
        values = -(p + eps).log()
        weight_mean = p / (p + eps) * negative_exp / denominator
        weight_positive = p / (p + eps) * (negative_exp + eps) / denominator

    gradients = (weight_mean * mean - weight_positive * positives) / tau
    longest = largest(negatives.norm(dim=1).nan_to_num(0.0, 0.0))
    size = (weight_mean * longest + weight_positive * positives.norm(dim=1, keepdim=True)) / tau
    if call.normalize:
        radial = (gradients * anchors).sum(dim=1, keepdim=True)
        gradients = (gradients - radial * anchors) / lengths
        size = size / lengths
        has_direction = ~(lengths <= MIN_NORM)
        gradients = torch.where(has_direction, gradients, 0.0)
        size = torch.where(has_direction, size, 0.0)
    unbounded = ~negatives.isfinite().all(dim=1)
    broken = (met & unbounded).any(dim=1) | ~gradients.isfinite().all(dim=1)
    gradients = torch.where(broken[:, None], torch.nan, gradients)
    anchor_lengths = anchors.norm(dim=1)
    return Truth(
        values=torch.where(active, values[:, 0], 0.0),
        gradients=torch.where(active[:, None], gradients, 0.0),
        lengths=lengths[:, 0],
        gradient_size=torch.where(active, size[:, 0], 0.0),
        logit_size=anchor_lengths * positives.norm(dim=1).clamp(min=longest),
        logit_doubt=longest * doubts[0] + anchor_lengths * largest(doubts[1]),
    )
